// AVX-512 with VBMI: Ice Lake, Sapphire Rapids, Zen 4 and later.
#include "common.h"

#if defined(__AVX512VBMI__)

namespace {

// The table of values as four planes of bytes. For each binade from 2^-31 to 1 what the group that
// it begins in shifts by, and where the next group begins; slopes by that shift's lowest four bits.
struct Table {
  explicit Table(const BigftCode &code) {
    for (int k = 0; k < 256; ++k)
      for (int b = 0; b < 4; ++b) planes[b][k] = uint8_t(to_bits(code.table[k]) >> (8 * b));
    const float none = std::numeric_limits<float>::infinity();
    for (int e = 0; e < 32; ++e) {
      const float low = std::ldexp(1.0f, e - 31), high = std::ldexp(1.0f, e - 30);
      int g = 0;
      while (g < 8 && code.threshold[g + 1] <= low) ++g;
      shift[e] = code.shift - g;
      next[e] = g < 8 && code.threshold[g + 1] < high ? code.threshold[g + 1] : none;
    }
    for (int g = 0; g < 9; ++g) slope[(code.shift - g) & 15] = code.slope[g];
  }
  alignas(64) uint8_t planes[4][256];
  alignas(64) int32_t shift[32];
  alignas(64) float next[32];
  alignas(64) float slope[16] = {};
};

// Narrowing and widening work within 128 bits; this puts four times four codes in their places.
inline __m512i transpose() {
  return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

inline __mmask64 mask(int left) {
  return left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
}

inline __m512i look_up(__m512i codes, const uint8_t *plane) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(plane), codes,
                                               _mm512_load_si512(plane + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), codes,
                                                _mm512_load_si512(plane + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

// 64 codes at a time; `out` has room for whole 64s.
inline void decode(const uint8_t *codes, const Table &table, float scale, int size, float *out) {
  const __m512 by = _mm512_set1_ps(scale);
  const __m512i spread = transpose();
  for (int j = 0; j < size; j += 64) {
    const __m512i found =
        _mm512_permutexvar_epi32(spread, _mm512_maskz_loadu_epi8(mask(size - j), codes + j));
    const __m512i b0 = look_up(found, table.planes[0]), b1 = look_up(found, table.planes[1]);
    const __m512i b2 = look_up(found, table.planes[2]), b3 = look_up(found, table.planes[3]);
    const __m512i low0 = _mm512_unpacklo_epi8(b0, b1), low1 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i high0 = _mm512_unpacklo_epi8(b2, b3), high1 = _mm512_unpackhi_epi8(b2, b3);
    const __m512i four[4] = {
        _mm512_unpacklo_epi16(low0, high0), _mm512_unpackhi_epi16(low0, high0),
        _mm512_unpacklo_epi16(low1, high1), _mm512_unpackhi_epi16(low1, high1)};
    for (int q = 0; q < 4; ++q)
      _mm512_store_ps(out + j + 16 * q, _mm512_mul_ps(_mm512_castsi512_ps(four[q]), by));
  }
}

// The positions of 16 numbers, with their signs; without them, and from 1.
template <bool with_sign>
inline __m512i find_positions(__m512 x, const Table &table) {
  const __m512 a = with_sign ? _mm512_abs_ps(x) : x;
  const __m512 least = _mm512_set1_ps(0x1p-31f);
  // The lowest five bits of the exponent count from there.
  const __m512i binade = _mm512_srli_epi32(_mm512_castps_si512(_mm512_max_ps(a, least)), 23);
  __m512i shift = _mm512_permutex2var_epi32(_mm512_load_si512(table.shift), binade,
                                            _mm512_load_si512(table.shift + 16));
  const __m512 next = _mm512_permutex2var_ps(_mm512_load_ps(table.next), binade,
                                             _mm512_load_ps(table.next + 16));
  const __m512i one = _mm512_set1_epi32(1);
  shift = _mm512_mask_sub_epi32(shift, _mm512_cmp_ps_mask(a, next, _CMP_GE_OQ), shift, one);
  const __m512 slope = _mm512_permutexvar_ps(shift, _mm512_load_ps(table.slope));
  const __m512 line = _mm512_min_ps(_mm512_fmadd_ps(a, slope, _mm512_set1_ps(bigft::kIntercept)),
                                    _mm512_set1_ps(bigft::kBelowTwo));
  // (line & 0x7fffff) | 0x800000
  const __m512i fraction = _mm512_ternarylogic_epi32(
      _mm512_castps_si512(line), _mm512_set1_epi32(0x7fffff), _mm512_set1_epi32(0x800000), 0xea);
  const __m512i k = _mm512_srlv_epi32(fraction, shift);
  if (!with_sign) return k;
  return _mm512_mask_sub_epi32(k, _mm512_movepi32_mask(_mm512_castps_si512(x)),
                               _mm512_setzero_si512(), k);
}

// 64 numbers at a time; `in` has room for whole 64s.
template <bool with_sign>
inline void encode(const float *in, const Table &table, float inverse, int size, uint8_t *out) {
  const __m512 by = _mm512_set1_ps(inverse);
  for (int j = 0; j < size; j += 64) {
    __m512i k[4];
    for (int q = 0; q < 4; ++q) {
      k[q] = find_positions<with_sign>(_mm512_mul_ps(_mm512_load_ps(in + j + 16 * q), by), table);
      // With signs, -128 to 128 is one too many for a byte: -129 becomes -128.
      k[q] = _mm512_sub_epi32(k[q], _mm512_set1_epi32(1));
    }
    __m512i found;
    if (with_sign) {
      found = _mm512_packs_epi16(_mm512_packs_epi32(k[0], k[1]), _mm512_packs_epi32(k[2], k[3]));
      found = _mm512_xor_si512(found, _mm512_set1_epi8(char(0x80)));
    } else {
      found = _mm512_packus_epi16(_mm512_packus_epi32(k[0], k[1]), _mm512_packus_epi32(k[2], k[3]));
    }
    _mm512_mask_storeu_epi8(out + j, mask(size - j), _mm512_permutexvar_epi32(transpose(), found));
  }
}

struct Lanes {
  static constexpr int N = 16;
  using F = __m512;
  static F load(const float *p) { return _mm512_loadu_ps(p); }
  static void store(float *p, F x) { _mm512_storeu_ps(p, x); }
  static F all(float x) { return _mm512_set1_ps(x); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F root(F a) { return _mm512_sqrt_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F keep_usable(F x, int &dropped) {
    const __mmask16 ok = _mm512_cmp_ps_mask(abs(x), all(bigft::kLargest), _CMP_LE_OQ);
    if (__builtin_expect(ok != 0xffff, 0)) dropped += 16 - __builtin_popcount(ok);
    return _mm512_maskz_mov_ps(ok, x);
  }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static __m512i widen(const void *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
  }
  static F load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(widen(p), 16));
  }
  static __m512i round(__m512i bits) {
    return _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16);
  }
  static void store_half(void *p, __m512i x) {
    _mm256_storeu_si256(static_cast<__m256i *>(p), _mm512_cvtepi32_epi16(x));
  }
  static void store_bf16(uint16_t *p, F x) { store_half(p, round(_mm512_castps_si512(x))); }
  static F join(const uint16_t *p, __m512i rest) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(widen(p), 16), rest));
  }
  static F load_split(const uint16_t *p, const int16_t *r) {
    return join(p, _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)r)));
  }
  static void store_split(uint16_t *p, int16_t *r, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    store_half(p, round(bits));
    store_half(r, bits);
  }
  static F load_split(const uint16_t *p, const int8_t *r) {
    const __m512i rest = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)r));
    return join(p, _mm512_slli_epi32(rest, 8));
  }
  static void store_split(uint16_t *p, int8_t *r, F x) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x80));
    store_half(p, round(bits));
    _mm_storeu_si128((__m128i *)r, _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 8)));
  }
};

}  // namespace

#include "step.inl"

bigft::Step bigft::step_avx512() { return run; }

#else

bigft::Step bigft::step_avx512() { return nullptr; }

#endif
