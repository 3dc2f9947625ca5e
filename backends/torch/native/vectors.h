// What the kernels of a chunk are made of, first: vectors of numbers and of truth values.
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
