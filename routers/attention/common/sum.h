#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_SUM_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_SUM_H_
// SUM: summaries of blocks of keys that grow with the keys.
#include "sluice/routers/attention/common/plan.h"
#include "sluice/runtime/kernels/pool/pool.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// Summaries of fixed blocks of keys, in a router's state: [heads, blocks, width or twice that].
struct BlockLayout {
  State<float> at;
  int64_t heads = 0;
  int64_t blocks = 0;  // at most
  int64_t block = 0;
  int64_t width = 0;  // of a key

  // Calls body(head, block, n, worker) in parallel for the blocks that summaries of the first
  // `known` keys lack, n of a block's keys being there: whole blocks come once, the open one at
  // every call.
  template <class Body>
  void ForEachNew(const KvView& keys, int64_t known, Executor& executor, Body&& body) const {
    const int64_t first = std::min(known, keys.rows) / block;
    const int64_t todo = CeilDiv(keys.rows, block) - first;
    executor.ParallelFor(heads * todo, 8, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = first + i % todo;
        body(i / todo, b, std::min(block, keys.rows - b * block), worker);
      }
    });
  }
};

// Means of fixed blocks of keys: [heads, blocks, width].
class BlockMeans {
 public:
  using Layout = BlockLayout;
  static Layout AddTo(RouterPlan& plan, int64_t heads, int64_t block, int64_t width) {
    const int64_t blocks = CeilDiv(plan.shape.max_kv, block);
    return {plan.AddState<float>(heads * blocks * width), heads, blocks, block, width};
  }

  BlockMeans(const RouterState& state, const Layout& layout)
      : l_(layout), mean_(RouterPlan::Get(state.layer, layout.at)), known_(state.keys) {}

  // Brings the means up to `keys`: whole blocks once, the open block anew at every call.
  // `finish`(mean, block) may post-process a block.
  template <class Finish>
  void Append(const KvView& keys, Executor& executor, Finish&& finish) {
    l_.ForEachNew(keys, known_, executor, [&](int64_t head, int64_t b, int64_t n, int) {
      float* mean = At(head, b);
      kernels::Pool(kernels::PoolKind::kMean, keys.at(b * l_.block, head), keys.dtype,
                    keys.row_stride, n, l_.width, mean);
      finish(mean, b);
    });
  }
  void Append(const KvView& keys, Executor& executor) {
    Append(keys, executor, [](float*, int64_t) {});
  }

  // out [width] = the mean of a block's keys before `end`, for queries that see no more of it.
  void MeanBefore(const KvView& keys, int64_t head, int64_t block, int64_t end, float* out) const {
    const int64_t begin = block * l_.block;
    kernels::Pool(kernels::PoolKind::kMean, keys.at(begin, head), keys.dtype, keys.row_stride,
                  end - begin, l_.width, out);
  }

  int64_t block() const { return l_.block; }
  float* At(int64_t head, int64_t block) const {
    return mean_ + (head * l_.blocks + block) * l_.width;
  }
  // The first n means as keys or values of a summary table.
  KvView View(int64_t n) const {
    return {mean_, DType::kF32, n, l_.heads, l_.width, l_.width, l_.blocks * l_.width};
  }

 private:
  Layout l_;
  float* mean_;
  int64_t known_;
};

// Element-wise maxima and minima of fixed blocks of keys: [heads, blocks, 2, width]. The product
// with a query split by sign (AddSplitBySign) bounds its logits of the block's keys from above. A
// NaN among the keys makes its elements NaN.
class BlockBounds {
 public:
  using Layout = BlockLayout;
  static Layout AddTo(RouterPlan& plan, int64_t heads, int64_t block, int64_t width) {
    const int64_t blocks = CeilDiv(plan.shape.max_kv, block);
    return {plan.AddState<float>(heads * blocks * 2 * width), heads, blocks, block, width};
  }

  BlockBounds(const RouterState& state, const Layout& layout)
      : l_(layout), bounds_(RouterPlan::Get(state.layer, layout.at)), known_(state.keys) {}

  // Brings the bounds up to `keys`.
  void Append(const KvView& keys, Executor& executor) {
    l_.ForEachNew(keys, known_, executor, [&](int64_t head, int64_t b, int64_t, int) {
      Before(keys, head, b, keys.rows, At(head, b));
    });
  }

  // out [2, width] = the bounds of a block's keys before `end`.
  void Before(const KvView& keys, int64_t head, int64_t block, int64_t end, float* out) const {
    const int64_t begin = block * l_.block;
    const int64_t n = std::min(l_.block, end - begin);
    kernels::Pool(kernels::PoolKind::kMax, keys.at(begin, head), keys.dtype, keys.row_stride, n,
                  l_.width, out);
    kernels::Pool(kernels::PoolKind::kMin, keys.at(begin, head), keys.dtype, keys.row_stride, n,
                  l_.width, out + l_.width);
  }

  float* At(int64_t head, int64_t block) const {
    return bounds_ + (head * l_.blocks + block) * 2 * l_.width;
  }

 private:
  Layout l_;
  float* bounds_;
  int64_t known_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_SUM_H_
