#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_H_
// PREP: a copy of the keys in few bits, to score with, that grows with the keys.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/runtime/kernels/int_score/int_score.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// What token scores are computed in.
enum class ScoreIn : uint8_t { kF32, kInt8, kInt4 };
// Turns a vector by the Hadamard matrix of the largest power of two that divides its width, block
// by block. Products of turned vectors are those of the vectors, and a single large element is
// spread over its block before it is rounded. O(d log d).
inline void RotateHadamard(float* x, int64_t d) {
  const int64_t block = d & -d;
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t i = 0; i < d; i += 2 * half) {
      for (int64_t j = i; j < i + half; ++j) {
        const float sum = x[j] + x[j + half];
        x[j + half] = x[j] - x[j + half];
        x[j] = sum;
      }
    }
  }
  const float scale = 1 / std::sqrt(static_cast<float>(block));
  for (int64_t i = 0; i < d; ++i) x[i] *= scale;
}

// Keys, rotated and rounded with a scale each: [heads, keys, width]. Made for ScoreIn::kF32 it adds
// nothing.
class IntKeys {
 public:
  struct Layout {
    State<uint8_t> packed;
    State<float> scale;  // [heads, max_kv]
    Scratch<float> key;
    Scratch<int8_t> rounded;
    kernels::KeyBits bits = kernels::KeyBits::k8;
    int64_t heads = 0;  // 0: nothing
    int64_t keys = 0;   // at most
    int64_t width = 0;
    int64_t head_bytes() const { return kernels::IntKeyBytes(bits, keys, width); }
  };
  static Layout AddTo(RouterPlan& plan, ScoreIn score, int64_t heads, int64_t width) {
    Layout l;
    if (score == ScoreIn::kF32) return l;
    l.bits = score == ScoreIn::kInt8 ? kernels::KeyBits::k8 : kernels::KeyBits::k4;
    l.heads = heads;
    l.keys = plan.shape.max_kv;
    l.width = width;
    l.packed = plan.AddState<uint8_t>(heads * l.head_bytes());
    l.scale = plan.AddState<float>(heads * l.keys);
    l.key = plan.AddScratch<float>(width);
    l.rounded = plan.AddScratch<int8_t>(width);
    return l;
  }

  IntKeys(const RouterState& state, const Layout& layout)
      : l_(layout),
        packed_(RouterPlan::Get(state.layer, layout.packed)),
        scale_(RouterPlan::Get(state.layer, layout.scale)),
        known_(state.keys) {}

  bool empty() const { return l_.heads == 0; }
  int64_t width() const { return kernels::IntWidth(l_.bits, l_.width); }  // of a query

  // Brings the copy up to `keys`.
  void Append(const KvView& keys, const RouterPlan& plan, const RunContext& ctx) {
    if (empty()) return;
    const int64_t known = std::min(known_, keys.rows);
    const int64_t todo = keys.rows - known;
    ctx.executor->ParallelFor(l_.heads * todo, 64, [&](int64_t begin, int64_t end, int w) {
      const WorkerScratch scratch = plan.Worker(ctx, w);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / todo;
        const int64_t at = known + i % todo;
        KeysAsFloat(keys, head, at, 1, scratch[l_.key]);
        RotateHadamard(scratch[l_.key], l_.width);
        scale_[head * l_.keys + at] = kernels::QuantiseInt(
            scratch[l_.key], l_.width, kernels::IntLimit(l_.bits), scratch[l_.rounded]);
        kernels::PackIntKey(l_.bits, scratch[l_.rounded], l_.width, at,
                            packed_ + head * l_.head_bytes());
      }
    });
  }

  // Rotates queries q [rows, width of a key] in place and rounds them into out [rows, width()];
  // weight [rows] takes on their scales.
  void RoundQueries(float* q, int64_t rows, float* weight, int8_t* out) const {
    std::memset(out, 0, rows * width());
    for (int64_t r = 0; r < rows; ++r) {
      RotateHadamard(q + r * l_.width, l_.width);
      weight[r] *= kernels::QuantiseInt(q + r * l_.width, l_.width,
                                        kernels::IntLimit(kernels::KeyBits::k8), out + r * width());
    }
  }

  // score [n] of rounded queries against keys ids[0, n), ascending, or the first n.
  void Score(const int8_t* q, const float* weight, int64_t rows, int64_t head, const uint32_t* ids,
             int64_t n, float* score) const {
    for (int64_t at = 0; at < n;) {
      const int64_t begin = ids == nullptr ? 0 : ids[at];
      int64_t run = ids == nullptr ? n : 1;
      while (at + run < n && ids[at + run] == begin + run) ++run;
      kernels::IntScore(l_.bits, q, weight, rows, l_.width, packed_ + head * l_.head_bytes(),
                        scale_ + head * l_.keys, begin, run, score + at);
      at += run;
    }
  }

 private:
  Layout l_;
  uint8_t* packed_;
  float* scale_;
  int64_t known_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_H_
