// One block of up to 256 elements, for a set of lanes. Included once per instruction set, in a
// namespace of its own, after `Lanes`, `Table`, `decode` and `encode` have been defined there;
// `Single` is the same as `Lanes` with one lane, for what is left over at the end.

namespace {

struct Codes {
  Table with_sign, without_sign;
};

struct Single {
  static constexpr int N = 1;
  using F = float;
  using M = bool;
  static F load(const float *p) { return *p; }
  static void store(float *p, F x) { *p = x; }
  static F all(float x) { return x; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F root(F a) { return std::sqrt(a); }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F abs(F a) { return std::fabs(a); }
  static F max(F a, F b) { return a > b ? a : b; }
  static F keep_usable(F x, int &dropped) {
    if (std::fabs(x) <= bigft::kLargest) return x;
    ++dropped;
    return 0.0f;
  }
  static float reduce_max(F a) { return a; }
  static F load_bf16(const uint16_t *p) { return from_bits(uint32_t(*p) << 16); }
  static void store_bf16(uint16_t *p, F x) { *p = uint16_t((to_bits(x) + 0x8000u) >> 16); }
  static F load_split(const uint16_t *p, const int16_t *r) {
    return from_bits((uint32_t(*p) << 16) + uint32_t(int32_t(*r)));
  }
  static void store_split(uint16_t *p, int16_t *r, F x) {
    const uint32_t bits = to_bits(x);
    *p = uint16_t((bits + 0x8000u) >> 16);
    *r = int16_t(uint16_t(bits));
  }
  static F load_split(const uint16_t *p, const int8_t *r) {
    return from_bits((uint32_t(*p) << 16) + uint32_t(int32_t(*r) * 256));
  }
  static void store_split(uint16_t *p, int8_t *r, F x) {
    const uint32_t bits = to_bits(x) + 0x80u;
    *p = uint16_t((bits + 0x8000u) >> 16);
    *r = int8_t(uint8_t(bits >> 8));
  }
};

struct Block {
  const BigftPart &part;
  const BigftGroup &group;
  int64_t start;   // of its elements in the part
  int size;
  int64_t number;  // of its scales
};

// The update itself; moments come from and go to `m` and `v`. Finds the largest of both.
template <class L, int weights, int gradients>
inline void update(const Block &block, float scale, int from, int to, float *__restrict m,
                   float *__restrict v, float &largest_m, float &largest_v, int &dropped) {
  using F = typename L::F;
  using G = std::conditional_t<gradients == BIGFT_GRADIENTS_BF16, uint16_t, float>;
  using W = std::conditional_t<weights == BIGFT_WEIGHTS_FP32, float, uint16_t>;
  using R = std::conditional_t<weights == BIGFT_WEIGHTS_SPLIT_8, int8_t, int16_t>;
  const G *__restrict grad = static_cast<const G *>(block.part.gradients) + block.start;
  W *__restrict weight = static_cast<W *>(block.part.weights) + block.start;
  R *__restrict rest = static_cast<R *>(block.part.rest) + block.start;
  uint16_t *__restrict copy = block.part.copy ? block.part.copy + block.start : nullptr;
  const BigftGroup &g = block.group;
  const F beta1 = L::all(g.beta1), beta2 = L::all(g.beta2);
  const F rest1 = L::all(g.one_minus_beta1), rest2 = L::all(g.one_minus_beta2);
  const F step = L::all(g.negative_step), decay = L::all(g.decay);
  const F inverse_root = L::all(g.inverse_root), epsilon = L::all(g.epsilon);
  const F factor = L::all(scale);
  F max_m = L::all(0.0f), max_v = L::all(0.0f);
  int unusable = 0;
  for (int j = from; j < to; j += L::N) {
    F x;
    if constexpr (gradients == BIGFT_GRADIENTS_BF16)
      x = L::load_bf16(grad + j);
    else
      x = L::load(grad + j);
    x = L::keep_usable(L::mul(x, factor), unusable);
    const F first = L::fma(L::load(m + j), beta1, L::mul(x, rest1));
    const F second = L::fma(L::load(v + j), beta2, L::mul(L::mul(x, x), rest2));
    L::store(m + j, first);
    L::store(v + j, second);
    max_m = L::max(max_m, L::abs(first));
    max_v = L::max(max_v, second);
    const F share = L::div(first, L::fma(L::root(second), inverse_root, epsilon));
    if constexpr (weights == BIGFT_WEIGHTS_FP32) {
      const F moved = L::fma(share, step, L::mul(L::load(weight + j), decay));
      L::store(weight + j, moved);
      if (copy) L::store_bf16(copy + j, moved);
    } else {
      const F before = L::load_split(weight + j, rest + j);
      L::store_split(weight + j, rest + j, L::fma(share, step, L::mul(before, decay)));
    }
  }
  largest_m = std::max(largest_m, L::reduce_max(max_m));
  largest_v = std::max(largest_v, L::reduce_max(max_v));
  dropped += unusable;
}

template <int weights, int gradients>
void step_block(const Block &block, const Codes &codes, float scale, int64_t &all_dropped) {
  alignas(64) float m8[256], v8[256];
  const BigftPart &part = block.part;
  const bool is_coded = part.scale1 != nullptr;
  const int whole = block.size / Lanes::N * Lanes::N;
  uint8_t *codes1 = static_cast<uint8_t *>(part.moment1) + block.start;
  uint8_t *codes2 = static_cast<uint8_t *>(part.moment2) + block.start;
  float *m = m8, *v = v8;
  if (is_coded) {
    const float s1 = part.scale1[block.number], s2 = part.scale2[block.number];
    decode(codes1, codes.with_sign, s1, block.size, m8);
    decode(codes2, codes.without_sign, s2, block.size, v8);
  } else {
    m = static_cast<float *>(part.moment1) + block.start;
    v = static_cast<float *>(part.moment2) + block.start;
  }
  float largest_m = 0.0f, largest_v = 0.0f;
  int dropped = 0;
  update<Lanes, weights, gradients>(block, scale, 0, whole, m, v, largest_m, largest_v, dropped);
  update<Single, weights, gradients>(block, scale, whole, block.size, m, v, largest_m, largest_v,
                                     dropped);
  all_dropped += dropped;
  if (!is_coded) return;
  // What is subnormal has no inverse, and no weight in an update either.
  const float least = std::numeric_limits<float>::min();
  if (largest_m < least) largest_m = 0.0f;
  if (largest_v < least) largest_v = 0.0f;
  part.scale1[block.number] = largest_m;
  part.scale2[block.number] = largest_v;
  const float inverse1 = largest_m > 0.0f ? 1.0f / largest_m : 0.0f;
  const float inverse2 = largest_v > 0.0f ? 1.0f / largest_v : 0.0f;
  encode<true>(m8, codes.with_sign, inverse1, block.size, codes1);
  encode<false>(v8, codes.without_sign, inverse2, block.size, codes2);
}

// A whole step, the blocks spread over threads.
template <int weights, int gradients>
int64_t step_parts(const BigftPart *parts, int64_t count, const BigftGroup *groups,
                   const Codes &codes, float scale, int threads) {
  const BigftPart &end = parts[count - 1];
  const int64_t blocks = end.first_block + bigft::count_blocks(end.size, end.phase);
  int64_t dropped = 0;
#pragma omp parallel num_threads(threads) reduction(+ : dropped)
  {
    const bigft::PlainArithmetic plain;
    const int64_t rank = omp_get_thread_num(), size = omp_get_num_threads();
    const int64_t from = blocks * rank / size, to = blocks * (rank + 1) / size;
    int64_t at = bigft::find_part(parts, count, from);
    for (int64_t number = from; number < to; ++number) {
      while (at + 1 < count && parts[at + 1].first_block <= number) ++at;
      const BigftPart &part = parts[at];
      const int64_t inner = number - part.first_block;
      const int64_t start = inner == 0 ? 0 : inner * 256 - part.phase;
      const int64_t stop = std::min((inner + 1) * 256 - part.phase, part.size);
      const Block block{part, groups[part.group], start, int(stop - start), inner};
      step_block<weights, gradients>(block, codes, scale, dropped);
    }
  }
  return dropped;
}

int64_t run(const BigftPart *parts, int64_t count, const BigftGroup *groups,
            const BigftCode &with_sign, const BigftCode &without_sign, int weights, int gradients,
            float scale, int threads) {
  const Codes codes{Table(with_sign), Table(without_sign)};
  using Run = int64_t (*)(const BigftPart *, int64_t, const BigftGroup *, const Codes &, float, int);
  static constexpr Run runs[3][2] = {
      {step_parts<0, 0>, step_parts<0, 1>},
      {step_parts<1, 0>, step_parts<1, 1>},
      {step_parts<2, 0>, step_parts<2, 1>},
  };
  return runs[weights][gradients](parts, count, groups, codes, scale, threads);
}

}  // namespace
