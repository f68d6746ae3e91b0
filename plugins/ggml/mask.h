#ifndef SLUICE_PLUGINS_GGML_MASK_H_
#define SLUICE_PLUGINS_GGML_MASK_H_
// What ggml's masks show: f16 matrices [n_q, n_kv] that are added to the logits.
#include <cstdint>
#include <memory>
#include <vector>

#include "sluice/api/attention_plan.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
// Nothing but LogitMask::kHidden.
bool AllHidden(const uint16_t* x, int64_t n);

// What a mask shows, row by row.
struct MaskShape {
  enum class Kind : uint8_t {
    kAll,     // every key
    kCausal,  // query i sees [0, first + i]
    kWindow,  // query i sees (first + i - window, first + i]
    kRuns,    // any set of keys
    kValues,  // biases other than 0 and -inf
  };
  Kind kind = Kind::kAll;
  int64_t first = 0, window = 0;
};
// O(n_q * n_kv).
MaskShape ReadMask(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv);

// Queries of one sequence among others' cells: in the order of cells each sees what the one before
// it sees and one later cell, as in a prompt or a step of its own.
struct MaskSequence {
  int64_t row = 0, rows = 0;
  std::vector<uint32_t> cells;  // that the last query sees; empty: these queries are no sequence
  // First cell and count say it all.
  bool contiguous() const {
    return !cells.empty() && cells.back() - cells.front() + 1 == cells.size();
  }
};
// Cuts the queries of a mask into the longest sequences, and the rest into single queries. Fills
// `all` from its beginning, keeps its memory and returns how many there are. O(n_q * n_kv).
int64_t ReadSequences(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv,
                      std::vector<MaskSequence>& all);

// Lists of keys for what a mask shows exactly; none for a plain prompt or step, which routers plan.
// Of masks without a shape the lists are panels of 64 keys in which a tile's queries see something,
// and the mask itself says the rest. Tiles are of 64 queries, or fewer where neighbours see
// different keys; where a query sees a few scattered keys (what an indexer left, say) they are
// listed one by one. Whichever costs least.
class MaskPlan {
 public:
  class Panels;
  MaskPlan();
  ~MaskPlan();
  MaskPlan(const MaskPlan&) = delete;
  MaskPlan& operator=(const MaskPlan&) = delete;
  // Another plan in the memory of the last. `group`: query heads a KV head. O(n_q * n_kv).
  void Make(const MaskShape& shape, const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv,
            int64_t group);
  // Valid while this is.
  AttentionBranch branch() const;
  // The lists hold pairs that only the mask tells from the visible ones.
  bool wants_mask() const { return wants_mask_; }
  int64_t tile() const { return tile_; }
  // LogitMask::zero.
  const uint64_t* zero() const { return by_key_ ? nullptr : zero_.data(); }

 private:
  void Add(int64_t lo, int64_t hi, MaskClass kind);
  void Close();
  void AddSeen(const MaskShape& shape, const uint16_t* mask, int64_t stride, int64_t n_q,
               int64_t n_kv, int64_t group);
  void AddKeys(int64_t n_q);
  void AddPanels(int64_t n_q, int64_t n_kv);

  int64_t tile_ = 64;
  int64_t window_ = 0;
  bool wants_mask_ = false;
  bool by_key_ = false;
  std::vector<PlanEntry> entries_;
  std::vector<uint32_t> keys_;
  std::vector<int64_t> begin_ = {0};
  std::vector<uint32_t> count_;
  std::vector<uint64_t> zero_;
  std::unique_ptr<Panels> panels_;  // what AddSeen found
};

// The factor of each head for ALiBi with this largest bias (arXiv 2108.12409): a geometric series,
// which heads beyond a power of two interleave.
std::vector<float> AlibiSlopes(int64_t heads, float max_bias);
}  // namespace ggml
SLUICE_END_NAMESPACE
#endif  // SLUICE_PLUGINS_GGML_MASK_H_
