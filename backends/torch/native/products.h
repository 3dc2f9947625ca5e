// Products of small matrices whose sizes are known.

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
