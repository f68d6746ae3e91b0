#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_PLAN_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_PLAN_H_
// The frame that attention routers share: sizes declared where they are used, one body per list
// row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
inline constexpr int64_t kTile = 64;                      // queries that usually share a list
inline constexpr int64_t kEverything = int64_t{1} << 31;  // a budget that no sequence reaches

inline int64_t CeilDiv(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int64_t MaxTiles(const AttentionShape& s, int64_t tile) {
  return CeilDiv(s.max_queries, tile);
}
// Query heads that share a KV head.
inline int64_t GroupSize(const AttentionShape& s) { return s.heads / s.kv_heads; }

// Where a part of the scratch, shared memory or state lies.
template <class T>
struct Scratch {
  size_t offset = 0;
};
template <class T>
struct Shared {
  size_t offset = 0;
};
template <class T>
struct State {
  size_t offset = 0;
};

// A worker's scratch during one Run.
class WorkerScratch {
 public:
  explicit WorkerScratch(std::byte* at) : at_(at) {}
  template <class T>
  T* operator[](Scratch<T> s) const {
    return reinterpret_cast<T*>(at_ + s.offset);
  }

 private:
  std::byte* at_;
};

// The base of every router's Plan: Add* in MakePlan returns a handle, Run looks it up, so that the
// two cannot drift apart.
struct RouterPlan : AttentionPlanInfo {
  RouterPlan() = default;
  explicit RouterPlan(const AttentionShape& s) { shape = s; }

  // n values for each worker.
  template <class T>
  Scratch<T> AddScratch(int64_t n) {
    const Scratch<T> handle = {worker_.Add<T>(n)};
    Resize();
    return handle;
  }
  // n values for all workers together.
  template <class T>
  Shared<T> AddShared(int64_t n) {
    const Shared<T> handle = {shared_.Add<T>(n)};
    Resize();
    return handle;
  }
  // n values that outlive the call, one block a layer and sequence.
  template <class T>
  State<T> AddState(int64_t n) {
    const State<T> handle = {state_.Add<T>(n)};
    state_bytes = state_.bytes();
    return handle;
  }
  // The same, one block a sequence.
  template <class T>
  State<T> AddSequence(int64_t n) {
    const State<T> handle = {sequence_.Add<T>(n)};
    sequence_bytes = sequence_.bytes();
    return handle;
  }

  WorkerScratch Worker(const RunContext& ctx, int worker) const {
    return WorkerScratch(ctx.workspace.data + shared_.bytes() +
                         worker_.bytes() * static_cast<size_t>(worker));
  }
  template <class T>
  T* Get(const RunContext& ctx, Shared<T> s) const {
    return ctx.workspace.At<T>(s.offset);
  }
  template <class T>
  static T* Get(std::byte* block, State<T> s) {
    return reinterpret_cast<T*>(block + s.offset);
  }

 private:
  void Resize() {
    workspace_bytes = shared_.bytes() + worker_.bytes() * static_cast<size_t>(shape.workers);
  }
  WorkspaceLayout worker_, shared_, state_, sequence_;
};

// Starts the plan of a call.
inline void Begin(const AttentionShape& s, const AttentionInputs& in, PlanBuilder& out,
                  Merge merge = Merge::kLse) {
  out.Begin(in.q_begin, in.q.rows, in.kv_len(), s.heads, s.kv_heads, in.q_positions, merge);
}

// Calls body(list, tile, scratch) for every row of a branch, in parallel.
template <class Body>
void ForEachRow(const BranchWriter& branch, const RouterPlan& plan, const RunContext& ctx,
                Body&& body) {
  const int64_t tiles = branch.num_tiles();
  ctx.executor->ParallelFor(branch.num_lists() * tiles, 1, [&](int64_t begin, int64_t end, int w) {
    for (int64_t r = begin; r < end; ++r) body(r / tiles, r % tiles, plan.Worker(ctx, w));
  });
}

// The queries of a tile as rows of AttentionInputs::q.
struct TileRows {
  int64_t begin = 0;
  int64_t count = 0;
};
inline TileRows RowsOf(const BranchWriter& branch, int64_t tile) {
  const int64_t begin = tile * branch.tile();
  return {begin, std::min(branch.q_count(), begin + branch.tile()) - begin};
}

inline PlanEntry ExactEntry(int64_t start, int64_t len, MaskClass mask = MaskClass::kCausal,
                            bool forced = false) {
  return {static_cast<uint32_t>(start), static_cast<uint32_t>(len), EntryState::kExact, mask, 0,
          static_cast<uint8_t>(forced)};
}
// A plan in which every query sees all that came before it, in lists that the query heads of a
// group share. The layout holds kv_heads * MaxTiles(s, tile) rows of one entry.
inline absl::Status WriteDense(const AttentionShape& s, const AttentionInputs& in, int64_t tile,
                               PlanBuilder& out) {
  Begin(s, in, out);
  SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.tile = tile}));
  for (int64_t list = 0; list < branch.num_lists(); ++list) {
    for (int64_t t = 0; t < branch.num_tiles(); ++t) {
      const int64_t row = branch.row_of(list, t);
      branch.entries(row)[0] = ExactEntry(0, branch.Queries(t).last + 1);
      branch.set_count(row, 1);
    }
  }
  return absl::OkStatus();
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_PLAN_H_
