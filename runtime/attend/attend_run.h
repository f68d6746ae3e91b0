#ifndef SLUICE_RUNTIME_ATTEND_ATTEND_RUN_H_
#define SLUICE_RUNTIME_ATTEND_ATTEND_RUN_H_
// One Attend::Run. The work of a branch is cut into items: a stream (KV head, or query head where
// lists or permutations differ by head) and one or more tiles. Plans whose branches share tiles run
// all branches of an item in one go, their state in the worker's scratch; other plans run branch
// after branch, their states kept per (query, head) in the workspace.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "sluice/api/plan_check.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/mask_row.h"
#include "sluice/runtime/attend/panel_cursor.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

SLUICE_BEGIN_NAMESPACE
namespace attend_internal {
inline constexpr int64_t kMaxSplits = 64;
// A group's panel with fewer wanted keys is gathered instead of read whole.
inline constexpr int64_t kGatherBelow = 24;
inline constexpr int64_t kKvMajorQueries = 256;
inline constexpr double kFixedOne = 4294967296.0;  // 2^32
inline constexpr int64_t kAllPanels = int64_t{1} << 62;

inline absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("attend: ", what));
}
// Sums of these are the same in any order. NaN counts as nothing.
inline int64_t ToFixed(double x) {
  return x > 0 ? static_cast<int64_t>(std::min(x, 1e9) * kFixedOne) : 0;
}
}  // namespace attend_internal

class AttendRun {
 public:
  AttendRun(const Attend& a, const AttentionPlan& plan, const AttendInputs& in,
            const RunContext& ctx, const AttendOutputs& out);
  absl::Status Check() const;
  void Execute();

 private:
  using Panel = attend_internal::Panel;
  using PanelCursor = attend_internal::PanelCursor;
  using PanelState = kernels::AttentionPanel;

  // How the work of one branch is cut.
  struct Cut {
    bool per_query_head = false;
    int64_t streams = 0;
    int64_t heads = 0;  // query heads of an item
    int64_t tiles_per_item = 1;
    int64_t items_per_stream = 0;
  };
  // The rows of an item: query heads [head0, head0 + heads) and slots [slot0, slot0 + n) of a
  // branch's query order. Row (i, h) is i * heads + h.
  struct Rows {
    const AttentionBranch* branch = nullptr;
    int64_t list = 0, kv = 0, head0 = 0, heads = 0, tile = 0, slot0 = 0, n = 0;
    int64_t count() const { return heads * n; }
    int64_t query(int64_t i) const { return branch->Query(list, slot0 + i); }
  };

  bool Fused() const;
  bool Groupable() const;
  Cut CutOf(const AttentionBranch& b) const;
  Rows RowsOf(const AttentionBranch& b, const Cut& cut, int64_t item) const;
  int64_t Cost(const Cut& cut, const AttentionBranch& b, int64_t item) const;

  void PackQueries(const Rows& r, int w) const;
  PanelState RowSide(const Rows& r, int w, int64_t branch) const;
  static void Clear(const PanelState& p);
  void Resume(const Rows& r, const PanelState& p) const;
  void Finish(const Rows& r, const PanelState& p, int w) const;
  void WeightedSum(const Rows& r, int w) const;

  // A panel's rows of one KV head.
  static kernels::PanelSource PanelRows(const KvView& view, int64_t kv, const Panel& panel) {
    const int64_t start = panel.ids != nullptr ? 0 : panel.start;
    return {view.at(start, kv), view.dtype, view.row_bytes(), panel.ids};
  }
  // `next`: the panel after this one, of the cache; null: not known.
  float Fold(PanelState& p, const KvView& k, const KvView& v, int64_t kv, const Panel& panel,
             const Panel* next, int w) const;
  void PackFp32(PanelState& p, const kernels::PanelSource& ks, const kernels::PanelSource& vs,
                int64_t dv, int w) const;
  void Count(const PanelState& p, bool summary, const KvView& k, const KvView& v, int w) const;
  void Prefetch(const Panel& p, int64_t kv) const;
  void SetMasks(const Rows& r, const PanelCursor& cursor, const Panel& panel, PanelState& p,
                int w) const;
  bool MaskIsZero(const Rows& r, const Panel& panel) const;
  void AddLogitMask(const Rows& r, const Panel& panel, PanelState& p, int w) const;
  // Walks a row of a branch; [first, last): the panels that a split owns.
  void Walk(const Rows& r, PanelState& p, int w, int64_t first, int64_t last) const;
  // Walks it once more with final m and l.
  void WalkProbabilities(const Rows& r, PanelState& p, int w) const;
  void AddProbabilities(const Rows& r, const Panel& panel, const float* prob, int w) const;

  // Calls item(i, worker) for all items of a branch, costly ones first.
  template <class Item>
  void ForEachItem(const Cut& cut, bool all_branches, const AttentionBranch& b, Item&& item);
  void FusedItem(const Cut& cut, int64_t item, int w) const;
  void FoldWanted(const PanelState& p, int64_t kv, const Panel& panel, int w) const;
  void Group(const Rows& r, const Cut& cut, int64_t item, int w) const;
  void MarkKeys(const Rows& r, int64_t tiles, uint64_t* bits) const;
  void Split(const Cut& cut, int64_t stream, int64_t split, int w) const;
  void MergeSplits(const Cut& cut, int64_t stream) const;
  float* SplitState(const Cut& cut, int64_t stream, int64_t split) const;

  void ExecuteFused();
  void ExecutePhased();
  void PhasedItem(size_t bi, const Cut& cut, int64_t item, int w) const;
  void FinishStored() const;
  // Where the state of a row is stored, and moving it there and back.
  int64_t StateAt(const Rows& r, int64_t i, int64_t h) const {
    const int64_t x = plan_.merge == Merge::kMean ? r.slot0 + i : r.query(i);
    return x * plan_.heads + r.head0 + h;
  }
  void Load(const Rows& r, const PanelState& p, int64_t branch) const;
  void Store(const Rows& r, const PanelState& p, int64_t branch) const;
  void CopyStored(int64_t from, int64_t to) const;
  float* StoredM(int64_t branch) const {
    return ws_.At<float>(a_.at_.state_m) + branch * a_.slots_;
  }
  float* StoredL(int64_t branch) const {
    return ws_.At<float>(a_.at_.state_l) + branch * a_.slots_;
  }
  float* StoredO(int64_t branch) const {
    return ws_.At<float>(a_.at_.state_o) + branch * a_.slots_ * a_.dv_pad_;
  }

  void ClearWorkers() const;
  void CollectWorkers() const;
  template <class T>
  T* Worker(int w, size_t at) const {
    return ws_.At<T>(a_.at_.worker + static_cast<size_t>(w) * a_.at_.stride + at);
  }
  // Calls visit(row, index of (query, head), query, head).
  template <class Visit>
  void EachRow(const Rows& r, Visit&& visit) const {
    for (int64_t i = 0; i < r.n; ++i) {
      const int64_t query = r.query(i);
      for (int64_t h = 0; h < r.heads; ++h)
        visit(i * r.heads + h, query * plan_.heads + r.head0 + h, query, r.head0 + h);
    }
  }

  const Attend& a_;
  const AttentionPlan& plan_;
  const AttendInputs& in_;
  Workspace ws_;
  Executor& ex_;
  const AttendOutputs& out_;
  const kernels::Bf16Attention* bf16_ = nullptr;  // of bf16 caches
  bool fused_ = true;
  bool grouped_ = false;
  bool second_pass_ = false;
  bool few_rows_ = false;
  int64_t g_ = 1;
  int64_t splits_ = 1;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_ATTEND_RUN_H_
