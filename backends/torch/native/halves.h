// Products in bfloat16 by the processor's matrix unit, where it has one.

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
