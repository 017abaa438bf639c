// AVX2 with FMA: Haswell, Zen and later.
#include "common.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

using Table = PlainTable;

inline void decode(const uint8_t *codes, const Table &table, float scale, int size, float *out) {
  const float *values = table.code.table;
  const __m256 by = _mm256_set1_ps(scale);
  int j = 0;
  for (; j + 8 <= size; j += 8) {
    const __m256i found = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + j)));
    _mm256_store_ps(out + j, _mm256_mul_ps(_mm256_i32gather_ps(values, found, 4), by));
  }
  for (; j < size; ++j) out[j] = values[codes[j]] * scale;
}

struct Lanes {
  static constexpr int N = 8;
  using F = __m256;
  static F load(const float *p) { return _mm256_loadu_ps(p); }
  static void store(float *p, F x) { _mm256_storeu_ps(p, x); }
  static F all(float x) { return _mm256_set1_ps(x); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F root(F a) { return _mm256_sqrt_ps(a); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F keep_usable(F x, int &dropped) {
    const F ok = _mm256_cmp_ps(abs(x), all(bigft::kLargest), _CMP_LE_OQ);
    const int mask = _mm256_movemask_ps(ok);
    if (__builtin_expect(mask != 0xff, 0)) dropped += 8 - __builtin_popcount(mask);
    return _mm256_and_ps(ok, x);
  }
  static float reduce_max(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static __m256i widen(const void *p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
  }
  static F load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(widen(p), 16));
  }
  static __m256i round(__m256i bits) {
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x8000)), 16);
  }
  // Of numbers below 2^16.
  static __m128i narrow(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  }
  static void store_half(void *p, __m256i x) {
    _mm_storeu_si128(static_cast<__m128i *>(p), narrow(x));
  }
  static void store_byte(void *p, __m256i x) {
    const __m128i half = narrow(x);
    _mm_storel_epi64(static_cast<__m128i *>(p), _mm_packus_epi16(half, half));
  }
  static void store_bf16(uint16_t *p, F x) { store_half(p, round(_mm256_castps_si256(x))); }
  static F join(const uint16_t *p, __m256i rest) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(widen(p), 16), rest));
  }
  static F load_split(const uint16_t *p, const int16_t *r) {
    return join(p, _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)r)));
  }
  static void store_split(uint16_t *p, int16_t *r, F x) {
    const __m256i bits = _mm256_castps_si256(x);
    store_half(p, round(bits));
    store_half(r, _mm256_and_si256(bits, _mm256_set1_epi32(0xffff)));
  }
  static F load_split(const uint16_t *p, const int8_t *r) {
    const __m256i rest = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)r));
    return join(p, _mm256_slli_epi32(rest, 8));
  }
  static void store_split(uint16_t *p, int8_t *r, F x) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x80));
    store_half(p, round(bits));
    store_byte(r, _mm256_and_si256(_mm256_srli_epi32(bits, 8), _mm256_set1_epi32(0xff)));
  }
};

// The positions of eight numbers that are not negative, but for zero: that is what group 1 makes of
// all that is below it, and is left out at the end.
template <bool with_sign>
inline __m256i find_position(__m256 x, const BigftCode &code) {
  // Each comparison that holds is -1.
  __m256i g = _mm256_setzero_si256();
  for (int i = 2; i < 9; ++i)
    g = _mm256_sub_epi32(g, _mm256_castps_si256(_mm256_cmp_ps(
                                x, Lanes::all(code.threshold[i]), _CMP_GE_OQ)));
  const __m256 slope = _mm256_permutevar8x32_ps(Lanes::load(code.slope + 1), g);
  const __m256 line = _mm256_fmadd_ps(x, slope, Lanes::all(bigft::kIntercept));
  __m256i k = _mm256_castps_si256(_mm256_min_ps(line, Lanes::all(bigft::kBelowTwo)));
  k = _mm256_or_si256(_mm256_and_si256(k, _mm256_set1_epi32(0x7fffff)),
                      _mm256_set1_epi32(0x800000));
  k = _mm256_srlv_epi32(k, _mm256_sub_epi32(_mm256_set1_epi32(code.shift - 1), g));
  if (!with_sign) k = _mm256_sub_epi32(k, _mm256_set1_epi32(1));
  const __m256 there = _mm256_cmp_ps(x, Lanes::all(code.threshold[1]), _CMP_GE_OQ);
  return _mm256_and_si256(k, _mm256_castps_si256(there));
}

template <bool with_sign>
inline void encode(const float *in, const Table &table, float inverse, int size, uint8_t *out) {
  const __m256 by = _mm256_set1_ps(inverse);
  int j = 0;
  for (; j + 8 <= size; j += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_load_ps(in + j), by);
    __m256i k = find_position<with_sign>(with_sign ? Lanes::abs(x) : x, table.code);
    if (with_sign) {
      const __m256i sign = _mm256_srai_epi32(_mm256_castps_si256(x), 31);
      k = _mm256_sub_epi32(_mm256_xor_si256(k, sign), sign);
      k = _mm256_add_epi32(k, _mm256_set1_epi32(table.code.zero));
      k = _mm256_max_epi32(k, _mm256_setzero_si256());
    }
    Lanes::store_byte(out + j, k);
  }
  for (; j < size; ++j) out[j] = find_code<with_sign>(in[j] * inverse, table.code);
}

}  // namespace

#include "step.inl"

bigft::Step bigft::step_avx2() { return run; }

#else

bigft::Step bigft::step_avx2() { return nullptr; }

#endif
