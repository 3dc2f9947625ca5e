// What the kernels of a chunk are made of: vectors, and products of small matrices whose sizes are known.
#include <torch/csrc/inductor/cpp_prefix.h>
#include <ATen/cpu/vec/vec.h>
#include <type_traits>

using Vec = at::vec::Vectorized<T>;
using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
constexpr int L = Vec::size();

#define ALWAYS static inline __attribute__((always_inline))
#define SEPARATE static __attribute__((noinline))

#if defined(CPU_CAPABILITY_AVX512)
// e^(S x), S 1 or -1, as 2^n e^r with |r| <= ln 2 / 2: n by adding and taking away 1.5 2^23, e^r by the polynomial 1 + r + ...
// of degree 6 with the smallest largest relative error (3.3e-9). Within 1.5 units in the last place. x must be within 2000.
// Where `some` is not set: 0.
template <int S>
ALWAYS __m512 power(__m512 x, __mmask16 some = 0xffff) {
  const __m512 magic = _mm512_set1_ps(12582912.f);
  const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(S * 1.44269504088896341f), magic), magic);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(S * 0.693147182f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(S * -1.90465430e-9f), r);
  __m512 p = _mm512_set1_ps(1.3824619683e-3f);
  for (float c : {S * 8.3687774066e-3f, 4.1668209473e-2f, S * 1.6666520250e-1f, 4.9999994183e-1f, S * 1.f, 1.f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(some, p, n);
}
// What would be less than the smallest normal number is 0: the processor takes a hundred times as long for one that is not
// normal, and half of a triangle of decays is e^-inf.
ALWAYS __m512 exponential(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.336f), _CMP_NLT_UQ);  // a NaN is not less
  return power<1>(_mm512_max_ps(_mm512_set1_ps(-88.f), _mm512_min_ps(_mm512_set1_ps(89.f), x)), normal);  // and stays one
}
// 1 / (1 + e^-x). The reciprocal is an estimate of 14 bits and one step of Newton's method.
ALWAYS __m512 logistic(__m512 x) {
  const __m512 within = _mm512_max_ps(_mm512_set1_ps(-87.f), _mm512_min_ps(_mm512_set1_ps(104.f), x));
  const __m512 d = _mm512_add_ps(power<-1>(within), _mm512_set1_ps(1.f));
  const __m512 guess = _mm512_rcp14_ps(d);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(d, guess, _mm512_set1_ps(1.f)), guess, guess);
}
#elif defined(CPU_CAPABILITY_AVX2)
// The same in vectors of 8. `shift` is n, at the place of a float's exponent: nothing multiplies by 2^n here.
template <int S>
ALWAYS __m256 power(__m256 x, __m256i& shift) {
  const __m256 magic = _mm256_set1_ps(12582912.f);
  const __m256 sum = _mm256_fmadd_ps(x, _mm256_set1_ps(S * 1.44269504088896341f), magic);
  const __m256 n = _mm256_sub_ps(sum, magic);
  shift = _mm256_slli_epi32(_mm256_castps_si256(sum), 23);  // the lowest bits of n + 1.5 2^23 are those of n
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(S * 0.693147182f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(S * -1.90465430e-9f), r);
  __m256 p = _mm256_set1_ps(1.3824619683e-3f);
  for (float c : {S * 8.3687774066e-3f, 4.1668209473e-2f, S * 1.6666520250e-1f, 4.9999994183e-1f, S * 1.f, 1.f})
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  return p;
}
ALWAYS __m256 exponential(__m256 x) {
  const __m256 most = _mm256_set1_ps(88.722832f);
  __m256i shift;
  const __m256 p = power<1>(_mm256_max_ps(_mm256_set1_ps(-88.f), _mm256_min_ps(most, x)), shift);
  const __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shift));
  const __m256 normal = _mm256_cmp_ps(x, _mm256_set1_ps(-87.336f), _CMP_NLT_UQ);
  const __m256 beyond = _mm256_cmp_ps(x, most, _CMP_NLE_UQ);  // infinity, and a NaN stays one
  const __m256 large = _mm256_mul_ps(x, _mm256_set1_ps(std::numeric_limits<float>::infinity()));
  return _mm256_blendv_ps(_mm256_and_ps(y, normal), large, beyond);
}
ALWAYS __m256 logistic(__m256 x) {
  __m256i shift;
  const __m256 p = power<-1>(_mm256_max_ps(_mm256_set1_ps(-87.f), _mm256_min_ps(_mm256_set1_ps(87.f), x)), shift);
  const __m256 scale = _mm256_castsi256_ps(_mm256_add_epi32(shift, _mm256_set1_epi32(127 << 23)));
  const __m256 one = _mm256_set1_ps(1.f);
  return _mm256_div_ps(one, _mm256_fmadd_ps(p, scale, one));
}
#endif

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#define OWN_FUNCTIONS 1
#endif

template <typename V>
ALWAYS V exponential_of(V x) {
#if defined(OWN_FUNCTIONS)
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) return exponential(x);
#endif
  return x.exp();
}
template <typename V>
ALWAYS V sigmoid_of(V x) {
#if defined(OWN_FUNCTIONS)
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) return logistic(x);
#endif
  return V(T(1)) / (V(T(1)) + x.neg().exp());
}

ALWAYS Vec sign_of(Vec x) {
  const Vec zero(T(0));  // zero and what is no number stay what they are
  return Vec::blendv(Vec::blendv(x, Vec(T(1)), x > zero), Vec(T(-1)), x < zero);
}

ALWAYS Vec every(bool value) {
  T lanes[L];
  std::memset(lanes, value ? 0xff : 0, sizeof(lanes));
  return Vec::loadu(lanes);
}
ALWAYS Vec opposite(Vec mask) { return mask ^ every(true); }

ALWAYS Vec gather(const T* p, long step, long n = L) {
  T lanes[L] = {};
  for (long i = 0; i < n; i++) lanes[i] = p[i * step];
  return Vec::loadu(lanes);
}
ALWAYS void scatter(Vec x, T* p, long step, long n = L) {
  T lanes[L];
  x.store(lanes);
  for (long i = 0; i < n; i++) p[i * step] = lanes[i];
}
// Vectors of rows that lie together, where the processor has an instruction for them.
#if defined(CPU_CAPABILITY_AVX512)
template <typename V>
ALWAYS bool wide_row(const at::BFloat16* p, V& x) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    __m512 row;
    at::vec::cvtbf16_fp32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), row);
    x = row;
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool narrow_row(V x, at::BFloat16* p) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), at::vec::cvtfp32_bf16(x));
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool mask_row(const bool* p, V& x) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    x = _mm512_castsi512_ps(_mm512_movm_epi32(_mm_test_epi8_mask(row, row)));
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool bytes_row(V x, bool* p) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m512i lanes = _mm512_castps_si512(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_maskz_set1_epi8(_mm512_test_epi32_mask(lanes, lanes), 1));
    return true;
  }
  return false;
}
#elif defined(CPU_CAPABILITY_AVX2)
template <typename V>
ALWAYS bool wide_row(const at::BFloat16* p, V& x) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m256i row = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    x = _mm256_castsi256_ps(_mm256_slli_epi32(row, 16));
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool narrow_row(V x, at::BFloat16* p) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    // To the nearest, of two to the even one; a NaN's bits could overflow, so it becomes the usual one.
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i lanes = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lanes, lanes), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool mask_row(const bool* p, V& x) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m256i row = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    x = _mm256_castsi256_ps(_mm256_cmpgt_epi32(row, _mm256_setzero_si256()));
    return true;
  }
  return false;
}
template <typename V>
ALWAYS bool bytes_row(V x, bool* p) {
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m256i zeros = _mm256_cmpeq_epi32(_mm256_castps_si256(x), _mm256_setzero_si256());
    const __m256i ones = _mm256_andnot_si256(zeros, _mm256_set1_epi32(1));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(ones, ones), 0x08);
    const __m128i lanes = _mm256_castsi256_si128(words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(lanes, lanes));
    return true;
  }
  return false;
}
#else
template <typename V>
ALWAYS bool wide_row(const at::BFloat16*, V&) { return false; }
template <typename V>
ALWAYS bool narrow_row(V, at::BFloat16*) { return false; }
template <typename V>
ALWAYS bool mask_row(const bool*, V&) { return false; }
template <typename V>
ALWAYS bool bytes_row(V, bool*) { return false; }
#endif

ALWAYS Vec mask(const bool* p, long step, long n = L) {
  Vec row;
  if (step == 0) return every(*p);
  if (step == 1 && n == L && mask_row(p, row)) return row;
  Bits lanes[L] = {};
  for (long i = 0; i < n; i++) lanes[i] = -static_cast<Bits>(p[i * step]);
  return Vec::loadu(lanes);
}
ALWAYS void bytes(Vec x, bool* p, long step, long n = L) {
  if (step == 1 && n == L && bytes_row(x, p)) return;
  Bits lanes[L];
  x.store(lanes);
  for (long i = 0; i < n; i++) p[i * step] = lanes[i] != 0;
}

ALWAYS Vec wide(const at::BFloat16* p, long step, long n = L) {
  Vec row;
  if (step == 0) return Vec(T(static_cast<float>(*p)));
  if (step == 1 && n == L && wide_row(p, row)) return row;
  T lanes[L] = {};
  for (long i = 0; i < n; i++) lanes[i] = static_cast<float>(p[i * step]);
  return Vec::loadu(lanes);
}
ALWAYS void narrow(Vec x, at::BFloat16* p, long step, long n = L) {
  if (step == 1 && n == L && narrow_row(x, p)) return;
  T lanes[L];
  x.store(lanes);
  for (long i = 0; i < n; i++) p[i * step] = static_cast<float>(lanes[i]);
}
ALWAYS Vec first(Vec x, long n) {
  T lanes[L];
  x.store(lanes);
  for (long i = n; i < L; i++) lanes[i] = 0;
  return Vec::loadu(lanes);
}
ALWAYS T total(Vec x) {
  return at::vec::vec_reduce_all<T>([](Vec& a, Vec& b) { return a + b; }, x);
}

template <long SIZE, typename F>
ALWAYS void vectors(F body) {
  for (long j = 0; j + L <= SIZE; j += L) body(j, std::true_type{});
  if constexpr (SIZE % L != 0) body(SIZE - SIZE % L, std::false_type{});
}

// From where to where along K a part of a matrix has values other than 0. Half of a triangle has none, and what has none
// adds nothing to a product.
struct Range {
  int from, to;
};
constexpr int STEP = 4;  // summands that a loop takes at once
constexpr int BAND = 4;  // rows whose zeros are looked for together
constexpr bool may_be_triangle(int rows, int columns) { return rows == columns && rows >= 32 && rows % STEP == 0; }

// Whether N values that lie beside each other are all 0.
template <int N>
ALWAYS bool zeros(const T* p) {
  for (int i = 0; i + L <= N; i += L)
    if (Vec::loadu(p + i).zero_mask() != (1 << L) - 1) return false;
  for (int i = N / L * L; i < N; i++)
    if (p[i] != 0) return false;
  return true;
}
// Looked for from both ends, by so many at once: where there are no zeros, that is one place at each.
template <int BY, typename F>
ALWAYS Range not_zero(Range found, F zero) {
  while (found.to - found.from >= BY && zero(found.to - BY)) found.to -= BY;
  while (found.to - found.from >= BY && zero(found.from)) found.from += BY;
  return found;
}
// Of the bands of L rows of A whose columns lie beside each other.
template <int K, long AK>
ALWAYS void lanes_used(const T* a, Range* used) {
  constexpr int COUNT = L / BAND, ALL = (1 << BAND) - 1;
  const auto search = [&](int k, int step, int Range::*end) {
    for (int left = (1 << COUNT) - 1; left && k >= 0 && k < K; k += step) {
      const int zero = Vec::loadu(a + k * AK).zero_mask();
      for (int i = 0; i < COUNT; i++)
        if ((left >> i & 1) && (zero >> i * BAND & ALL) != ALL) {
          used[i].*end = step < 0 ? k / STEP * STEP + STEP : k / STEP * STEP;
          left &= ~(1 << i);
        }
    }
  };
  for (int i = 0; i < COUNT; i++) used[i] = {0, 0};  // as long as nothing is found
  search(K - 1, -1, &Range::to);
  search(0, 1, &Range::from);
}
// Of the rows of A, band by band.
template <int M, int K, long AR, long AK>
ALWAYS void find_used(const T* a, Range* used) {
  int m = 0;
  if constexpr (AR == 1 && L % BAND == 0)
    for (; m + L <= M; m += L) lanes_used<K, AK>(a + m, used + m / BAND);
  for (; m < M; m += BAND) {
    const int end = std::min(M, m + BAND);
    Range found = {0, K};
    if constexpr (AK == 1)
      found = not_zero<L>(found, [&](int k) {
        for (int r = m; r < end; r++)
          if (!zeros<L>(a + r * AR + k)) return false;
        return true;
      });
    used[m / BAND] = not_zero<STEP>(found, [&](int k) {
      for (int i = k; i < k + STEP; i++)
        for (int r = m; r < end; r++)
          if (a[r * AR + i * AK] != 0) return false;
      return true;
    });
  }
}
// Of N columns of B.
template <int N, int K, long BK>
ALWAYS Range used_by(const T* b) {
  return not_zero<STEP>({0, K}, [&](int k) {
    for (int i = k; i < k + STEP; i++)
      if (!zeros<N>(b + i * BK)) return false;
    return true;
  });
}
// Of R rows of A.
template <int R>
ALWAYS Range used_by_rows(const Range* used, int m) {
  Range rows = used[m / BAND];
  for (int band = m / BAND + 1; band <= (m + R - 1) / BAND; band++)
    rows = {std::min(rows.from, used[band].from), std::max(rows.to, used[band].to)};
  return rows;
}

// One tile of C = A B: R rows of W vectors (the last one of REST places, where REST is not 0), summed over a range of K, or `ALL`.
template <int R, int W, int REST, int K, bool ALL, long AR, long AK, long BK, long CR>
ALWAYS void tile(const T* __restrict a, const T* __restrict b, T* __restrict c, Range range) {
  Vec acc[R][W];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) acc[r][w] = Vec(T(0));
  const auto add = [&](int k) __attribute__((always_inline)) {
    Vec row[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; w++)
      row[w] = REST && w == W - 1 ? Vec::loadu(b + k * BK + w * L, REST) : Vec::loadu(b + k * BK + w * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      Vec x(a[r * AR + k * AK]);
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) acc[r][w] = at::vec::fmadd(x, row[w], acc[r][w]);
    }
  };
  if constexpr (ALL) {
#pragma GCC unroll 4
    for (int k = 0; k < K; k++) add(k);
  } else {
#pragma GCC unroll 4
    for (long k = range.from; k < range.to; k++) add(k);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++)
      if (REST && w == W - 1) acc[r][w].store(c + r * CR + w * L, REST);
      else acc[r][w].store(c + r * CR + w * L);
}

// Rows of a tile of W vectors: as many as leave registers for a row of B and a value of A.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int tile_rows(int W) { return W == 3 ? 4 : W == 2 ? 6 : 12; }  // of 16 registers
constexpr int tile_vectors(int left) { return left == 1 || left == 3 ? left : 2; }
#else
constexpr int tile_rows(int W) { return W == 4 ? 6 : W == 3 ? 8 : W == 2 ? 12 : 16; }  // of 32
constexpr int tile_vectors(int left) { return left == 5 ? 3 : left < 4 ? left : 4; }
#endif

// Which matrices are looked through for zeros.
template <bool ROWS, bool COLUMNS>
struct Look {
  static constexpr bool rows = ROWS, columns = COLUMNS;
};

template <int M, int W, int REST, int K, typename LOOK, long AR, long AK, long BK, long CR>
ALWAYS void columns(const T* a, const T* b, T* c, const Range* used) {
  constexpr int R = tile_rows(W), LEFT = M % R;
  // Few rows would leave the units waiting for each other's sums: with those before them they are two tiles alike.
  constexpr int LAST = M > R && LEFT > 0 && LEFT * W < 8 ? R + LEFT : LEFT;
  constexpr int FIRST = LAST > R ? (LAST + 1) / 2 : LAST, SECOND = LAST - FIRST;
  Range here = {0, K};
  if constexpr (LOOK::columns) here = used_by<REST ? W * L - L + REST : W * L, K, BK>(b);
  const auto rows = [&](int m, auto count) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    Range range = here;
    if constexpr (LOOK::rows) {
      const Range there = used_by_rows<N>(used, m);
      range = {std::max(here.from, there.from), std::min(here.to, there.to)};
    }
    tile<N, W, REST, K, !LOOK::rows && !LOOK::columns, AR, AK, BK, CR>(a + m * AR, b, c + m * CR, range);
  };
  int m = 0;
  for (; m + R <= M - LAST; m += R) rows(m, std::integral_constant<int, R>{});
  if constexpr (FIRST > 0) rows(m, std::integral_constant<int, FIRST>{});
  if constexpr (SECOND > 0) rows(m + FIRST, std::integral_constant<int, SECOND>{});
}

// How many tiles of the same width the first columns take.
constexpr int tiles_alike(int vectors) {
  const int width = tile_vectors(vectors);
  int count = 0;
  for (; vectors > 0 && tile_vectors(vectors) == width; vectors -= width) count++;
  return count;
}

template <int M, int N, int K, typename LOOK, long AR, long AK, long BK, long CR>
ALWAYS void some_columns(const T* a, const T* b, T* c, const Range* used) {
  if constexpr (N >= L) {
    constexpr int W = tile_vectors(N / L) * L, DONE = W * tiles_alike(N / L);
    for (int n = 0; n < DONE; n += W) columns<M, W / L, 0, K, LOOK, AR, AK, BK, CR>(a, b + n, c + n, used);
    some_columns<M, N - DONE, K, LOOK, AR, AK, BK, CR>(a, b + DONE, c + DONE, used);
  } else if constexpr (N > 0) {
    columns<M, 1, N, K, LOOK, AR, AK, BK, CR>(a, b, c, used);
  }
}

template <int M, int N, int K, typename LOOK, long AR, long AK, long BK, long CR>
ALWAYS void all_columns(const T* a, const T* b, T* c) {
  Range used[(M + BAND - 1) / BAND];
  if constexpr (LOOK::rows) find_used<M, K, AR, AK>(a, used);
  some_columns<M, N, K, LOOK, AR, AK, BK, CR>(a, b, c, used);
}

template <int N>
ALWAYS void beside(const T* from, T* to) {
#pragma GCC unroll 4
  for (int i = 0; i + L <= N; i += L) Vec::loadu(from + i).store(to + i);
  if constexpr (N % L > 0) Vec::loadu(from + N - N % L, N % L).store(to + N - N % L, N % L);
}

// C [M, N] = A [M, K] B [K, N]; AR, AK: strides of A's rows and columns, BK and CR of the rows of B and C.
template <int M, int N, int K, long AR, long AK, long BK, long CR>
SEPARATE void product(const T* a, const T* b, T* c) {
  using LOOK = Look<may_be_triangle(M, K), may_be_triangle(K, N)>;
  if constexpr (AR == 1 && AK * sizeof(T) >= 256 && K >= 32 && N >= 2 * L) {
    // A column of A would fill a few sets of the cache, over and over: rows of it are laid beside each other first.
    constexpr int ROWS = 24;
    alignas(64) T some[K * ROWS];
    int m = 0;
    for (; m + ROWS <= M; m += ROWS) {
      for (int k = 0; k < K; k++) beside<ROWS>(a + m + k * AK, some + k * ROWS);
      all_columns<ROWS, N, K, LOOK, 1, ROWS, BK, CR>(some, b, c + m * CR);
    }
    constexpr int REST = M % ROWS;
    if constexpr (REST > 0) {
      for (int k = 0; k < K; k++) beside<REST>(a + m + k * AK, some + k * REST);
      all_columns<REST, N, K, LOOK, 1, REST, BK, CR>(some, b, c + m * CR);
    }
  } else {
    all_columns<M, N, K, LOOK, AR, AK, BK, CR>(a, b, c);
  }
}

// B [K, N], its rows laid beside each other, from A with strides R and S of rows and columns.
template <int K, int N, long R, long S>
SEPARATE void turn(const T* a, T* b) {
  constexpr int KV = R == 1 ? K / L * L : 0, NV = R == 1 ? N / L * L : 0;
  for (int n = 0; n < NV; n += L)
    for (int k = 0; k < KV; k += L) at::vec::transpose_mxn<T, L, L>(a + n * S + k, S, b + k * N + n, N);
  for (int n = 0; n < N; n++)
    for (int k = n < NV ? KV : 0; k < K; k++) b[k * N + n] = a[k * R + n * S];
}

// N values that lie beside each other, in float32.
template <int N>
ALWAYS void widened(const at::BFloat16* from, T* to) {
  for (int i = 0; i + L <= N; i += L) wide(from + i, 1).store(to + i);
  for (int i = N / L * L; i < N; i++) to[i] = static_cast<float>(from[i]);
}

// The same where columns of B lie BC apart, and values may be bfloat16: what `product` does not take is laid out for it.
template <int M, int N, int K, long AR, long AK, long BK, long BC, long CR, typename A, typename B>
SEPARATE void any_product(const A* a, const B* b, T* c) {
  if constexpr (!std::is_same_v<A, T>) {
    constexpr bool BY_COLUMNS = AR == 1 && AK != 1;
    alignas(64) T some[M * K];
    if constexpr (BY_COLUMNS)
      for (int k = 0; k < K; k++) widened<M>(a + k * AK, some + k * M);
    else if constexpr (AK == 1)
      for (int m = 0; m < M; m++) widened<K>(a + m * AR, some + m * K);
    else
      for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++) some[m * K + k] = static_cast<float>(a[m * AR + k * AK]);
    any_product<M, N, K, BY_COLUMNS ? 1 : K, BY_COLUMNS ? M : 1, BK, BC, CR>(some, b, c);
  } else if constexpr (!std::is_same_v<B, T> && BC != 1 && BK == 1) {
    alignas(64) T some[N * K];
    for (int n = 0; n < N; n++) widened<K>(b + n * BC, some + n * K);
    any_product<M, N, K, AR, AK, 1, K, CR>(a, some, c);
  } else if constexpr (!std::is_same_v<B, T> || BC != 1) {
    alignas(64) T some[K * N];
    if constexpr (!std::is_same_v<B, T> && BC == 1)
      for (int k = 0; k < K; k++) widened<N>(b + k * BK, some + k * N);
    else if constexpr (std::is_same_v<B, T> && BK == 1)
      turn<K, N, BK, BC>(b, some);
    else
      for (int k = 0; k < K; k++)
        for (int n = 0; n < N; n++) some[k * N + n] = static_cast<float>(b[k * BK + n * BC]);
    any_product<M, N, K, AR, AK, N, 1, CR>(a, some, c);
  } else {
    product<M, N, K, AR, AK, BK, CR>(a, b, c);
  }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(CPU_CAPABILITY_AVX512) && defined(__linux__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>

// Registers of the matrix unit: 16 rows of 64 bytes each. Linux gives them to a process that asks.
static const bool tiles = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// While it lives, a thread's tiles are those of `product_of_halves`.
struct Tiles {
  Tiles() {
    static const Shapes shapes;
    if (tiles) _tile_loadconfig(&shapes);
  }
  ~Tiles() {
    if (tiles) _tile_release();
  }
};

ALWAYS __m512 some(const float* p, long n) {
  return n >= 16 ? _mm512_loadu_ps(p) : n <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps((1u << n) - 1, p);
}
ALWAYS __m256i some_halves(const at::BFloat16* p, long n) {
  return n >= 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                 : n <= 0 ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16((1u << n) - 1, p);
}
// Up to 32 values that lie beside each other, rounded.
ALWAYS __m512i halves(const float* p, long n) { return (__m512i)_mm512_cvtne2ps_pbh(some(p + 16, n - 16), some(p, n)); }
ALWAYS __m512i halves(const at::BFloat16* p, long n) {
  return n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1, p);
}
// Up to 16 pairs of one value of each row: what the matrix unit multiplies at once.
template <typename E>
ALWAYS __m512i pairs(const E* first, long n, const E* second, long m) {
  alignas(64) static constexpr int16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both;
  if constexpr (std::is_same_v<E, float>)
    both = (__m512i)_mm512_cvtne2ps_pbh(some(second, m), some(first, n));
  else
    both = _mm512_inserti64x4(_mm512_castsi256_si512(some_halves(first, n)), some_halves(second, m), 1);
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}
ALWAYS void turn_pairs(const __m512i* from, __m512i* to) {
  at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(from), 16, reinterpret_cast<float*>(to), 16, 16, 16);
}
// A tile of 16 rows and 32 columns, less where the matrix ends.
template <long ROW, long COLUMN, typename E>
ALWAYS void pack_rows(const E* p, long rows, long columns, __m512i* to) {
  if constexpr (COLUMN == 1) {
    for (long m = 0; m < 16; m++) to[m] = m < rows ? halves(p + m * ROW, columns) : _mm512_setzero_si512();
  } else if constexpr (ROW == 1) {
    alignas(64) __m512i turned[16];
    for (long k = 0; k < 16; k++) {
      const E* first = p + 2 * k * COLUMN;
      turned[k] = pairs(first, 2 * k < columns ? rows : 0, first + COLUMN, 2 * k + 1 < columns ? rows : 0);
    }
    turn_pairs(turned, to);
  } else {
    for (long m = 0; m < 16; m++) {
      alignas(64) float row[32] = {};
      for (long k = 0; m < rows && k < 32 && k < columns; k++) row[k] = static_cast<float>(p[m * ROW + k * COLUMN]);
      to[m] = halves(row, 32);
    }
  }
}
// A tile of 16 columns and 32 rows: a row of pairs for each two rows.
template <long ROW, long COLUMN, typename E>
ALWAYS void pack_columns(const E* p, long rows, long columns, __m512i* to) {
  if constexpr (COLUMN == 1) {
    for (long k = 0; k < 16; k++) {
      const E* first = p + 2 * k * ROW;
      to[k] = pairs(first, 2 * k < rows ? columns : 0, first + ROW, 2 * k + 1 < rows ? columns : 0);
    }
  } else {
    alignas(64) __m512i turned[16];
    pack_rows<COLUMN, ROW>(p, columns, rows, turned);
    turn_pairs(turned, to);
  }
}

#define TILE_STORED(tile, m, n)                                                            \
  if (m + 16 <= M && n + 16 <= N) {                                                        \
    _tile_stored(tile, c + (m) * CR + (n), CR * sizeof(float));                            \
  } else if (m < M && n < N) {                                                             \
    alignas(64) float rest[256];                                                           \
    _tile_stored(tile, rest, 64);                                                          \
    for (long i = 0; i < 16 && m + i < M; i++)                                             \
      _mm512_mask_storeu_ps(c + (m + i) * CR + (n), n + 16 <= N ? 0xffff : (1u << (N - (n))) - 1, _mm512_load_ps(rest + 16 * i)); \
  }

// The product of matrices whose values are rounded to bfloat16, summed in float32 by the matrix unit. BC: stride of B's
// columns.
template <int M, int N, int K, long AR, long AK, long BK, long BC, long CR, typename A, typename B>
SEPARATE void product_of_halves(const A* a, const B* b, float* c) {
  if (!tiles) return any_product<M, N, K, AR, AK, BK, BC, CR>(a, b, c);
  constexpr int MT = (M + 15) / 16, NT = (N + 15) / 16, KT = (K + 31) / 32;
  alignas(64) __m512i left[MT + MT % 2][KT][16], right[NT + NT % 2][KT][16];
  for (int m = 0; m < MT; m++)
    for (int k = 0; k < KT; k++)
      pack_rows<AR, AK>(a + m * 16 * AR + k * 32 * AK, M - m * 16, K - k * 32, left[m][k]);
  for (int n = 0; n < NT; n++)
    for (int k = 0; k < KT; k++)
      pack_columns<BK, BC>(b + k * 32 * BK + n * 16 * BC, K - k * 32, N - n * 16, right[n][k]);
  for (int n = 0; n < NT; n += 2)
    for (int m = 0; m < MT; m += 2) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < KT; k++) {
        _tile_loadd(4, left[m][k], 64);
        _tile_loadd(6, right[n][k], 64);
        _tile_dpbf16ps(0, 4, 6);
        if (n + 1 < NT) {
          _tile_loadd(7, right[n + 1][k], 64);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (m + 1 < MT) {
          _tile_loadd(5, left[m + 1][k], 64);
          _tile_dpbf16ps(2, 5, 6);
          if (n + 1 < NT) _tile_dpbf16ps(3, 5, 7);
        }
      }
      TILE_STORED(0, m * 16, n * 16)
      TILE_STORED(1, m * 16, n * 16 + 16)
      TILE_STORED(2, m * 16 + 16, n * 16)
      TILE_STORED(3, m * 16 + 16, n * 16 + 16)
    }
}
#else
struct Tiles {
  Tiles() {}
};
template <int M, int N, int K, long AR, long AK, long BK, long BC, long CR, typename A, typename B>
ALWAYS void product_of_halves(const A* a, const B* b, T* c) {
  any_product<M, N, K, AR, AK, BK, BC, CR>(a, b, c);
}
#endif
