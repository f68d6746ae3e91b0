#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_PLANNING_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_PLANNING_H_
// What most attention routers share: per-worker scratch, the plan header, block selection under
// forced blocks, and block summaries that grow with the keys.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/api/attention_router.h"
#include "sluice/runtime/kernels/pool/pool.h"
#include "sluice/runtime/kernels/top_k/top_k.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

SLUICE_BEGIN_NAMESPACE
namespace attention_common {
// Header of a plan over the queries of `in`.
inline PlanHeader HeaderOf(const AttentionShape& s, const AttentionInputs& in, ListScope scope,
                           int64_t tile) {
  PlanHeader p;
  p.q_begin = in.q_begin;
  p.q_positions = in.q_positions;
  p.q_count = in.q.rows;
  p.kv_len = in.kv_len();
  p.heads = s.heads;
  p.kv_heads = s.kv_heads;
  p.scope = scope;
  p.tile = tile;
  return p;
}
inline int64_t MaxTiles(const AttentionShape& s, int64_t tile) {
  return (s.max_queries + tile - 1) / tile;
}

// First and last absolute query of a tile.
struct TileQueries {
  int64_t first, last;
  int64_t count() const { return last - first + 1; }
};
inline TileQueries QueriesOf(const PlanHeader& p, int64_t tile) {
  return {p.position(tile * p.tile), p.position(std::min(p.q_count, (tile + 1) * p.tile) - 1)};
}

// Calls body(list, tile, worker) for every list row.
template <class Body>
void ForEachRow(const PlanHeader& p, Executor& executor, Body&& body) {
  const int64_t tiles = p.num_tiles();
  executor.ParallelFor(p.num_lists() * tiles, 1, [&](int64_t b, int64_t e, int w) {
    for (int64_t r = b; r < e; ++r) body(r / tiles, r % tiles, w);
  });
}

// Scratch of `one` per worker.
struct WorkerScratch {
  size_t at = 0, stride = 0;
  void Add(WorkspaceLayout& all, const WorkspaceLayout& one, int workers) {
    stride = one.bytes();
    at = all.Add<std::byte>(static_cast<int64_t>(stride) * workers);
  }
  template <class T>
  T* At(const Workspace& w, int worker, size_t offset) const {
    return w.At<T>(at + stride * static_cast<size_t>(worker) + offset);
  }
};

// How blocks are chosen from scores.
struct BlockRule {
  int64_t k = 0;                // blocks kept; 0: use p
  double p = 0;                 // share of the score mass kept (scores must be non-negative)
  double tau = -1;              // with k = p = 0: keep scores > tau
  int64_t sink = 1, local = 1;  // forced: the first blocks, and the last ones up to the tile's own
  bool count_forced = true;     // whether forced blocks use up k or p
};
inline size_t BlockScratchBytes(int64_t blocks) {
  return std::max(kernels::TopKScratchBytes(blocks), kernels::TopPScratchBytes(blocks)) +
         static_cast<size_t>(blocks + 16) * sizeof(uint32_t);
}
// Writes the entries of one list row, ascending, and returns how many. `score` [visible] is
// overwritten; blocks [own, visible) overlap the tile. Ties go to the lowest block; NaN is never
// selected.
inline int64_t SelectBlocks(const BlockRule& rule, float* score, int64_t visible, int64_t own,
                            void* scratch, PlanEntry* out) {
  const auto forced = [&](int64_t b) {
    return b < rule.sink || b > own - std::max<int64_t>(rule.local, 1);
  };
  int64_t n_forced = 0;
  double total = 0, forced_mass = 0;
  for (int64_t b = 0; b < visible; ++b) {
    if (score[b] > 0) total += score[b];
    if (!forced(b)) continue;
    ++n_forced;
    if (score[b] > 0) forced_mass += score[b];
    score[b] = -HUGE_VALF;
  }
  uint32_t* ids = static_cast<uint32_t*>(scratch);
  void* rest = ids + (visible + 15) / 16 * 16;
  size_t picked = 0;
  if (rule.k > 0) {
    const int64_t k = rule.count_forced ? std::max<int64_t>(0, rule.k - n_forced) : rule.k;
    picked = kernels::TopK(score, visible, std::min(k, visible), ids, rest).count;
  } else if (rule.p > 0) {
    const double others = total - forced_mass;
    const double p = !rule.count_forced || rule.p >= 1 ? rule.p
                     : others > 0                      ? (rule.p * total - forced_mass) / others
                                                       : 0;
    picked = kernels::TopP(score, visible, static_cast<float>(p), ids, rest);
  } else {
    for (int64_t b = 0; b < visible; ++b) {
      if (score[b] > rule.tau) ids[picked++] = static_cast<uint32_t>(b);
    }
  }
  int64_t n = 0;
  size_t next = 0;
  for (int64_t b = 0; b < visible; ++b) {
    const bool f = forced(b), p = next < picked && ids[next] == static_cast<uint32_t>(b);
    next += p;
    if (f || p)
      out[n++] = {static_cast<uint32_t>(b), 1, EntryState::kExact,
                  MaskClass::kCausal,       0, static_cast<uint8_t>(f)};
  }
  return n;
}

// Means of fixed blocks of keys, kept in caller memory that starts as zeros: a header, then [heads,
// blocks, width].
class BlockMeans {
 public:
  static size_t Bytes(int64_t heads, int64_t max_kv, int64_t block, int64_t width) {
    return 64 + static_cast<size_t>(heads * ((max_kv + block - 1) / block) * width) * sizeof(float);
  }
  BlockMeans(std::byte* state, int64_t heads, int64_t max_kv, int64_t block, int64_t width)
      : done_(reinterpret_cast<int64_t*>(state)),
        mean_(reinterpret_cast<float*>(state + 64)),
        heads_(heads),
        blocks_((max_kv + block - 1) / block),
        block_(block),
        width_(width) {}
  // Brings the means up to `keys`: whole blocks once, the open block anew at every call.
  // `finish`(mean, block) may post-process a block. Returns how many bytes of keys were read.
  template <class Finish>
  void Append(const KvView& keys, Executor& executor, Finish&& finish) {
    const int64_t total = (keys.rows + block_ - 1) / block_, whole = keys.rows / block_,
                  first = std::min(*done_, whole);
    const int64_t todo = total - first;
    executor.ParallelFor(heads_ * todo, 8, [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t head = i / todo, blk = first + i % todo;
        const int64_t n = std::min(block_, keys.rows - blk * block_);
        float* mean = At(head, blk);
        kernels::Pool(kernels::PoolKind::kMean, keys.at(blk * block_, head), keys.dtype,
                      keys.row_stride, n, width_, mean);
        finish(mean, blk);
      }
    });
    *done_ = whole;
  }
  void Append(const KvView& keys, Executor& executor) {
    Append(keys, executor, [](float*, int64_t) {});
  }
  float* At(int64_t head, int64_t block) const { return mean_ + (head * blocks_ + block) * width_; }

 private:
  int64_t* done_;
  float* mean_;
  int64_t heads_, blocks_, block_, width_;
};
}  // namespace attention_common
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_PLANNING_H_
