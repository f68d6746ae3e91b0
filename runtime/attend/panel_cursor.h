#ifndef SLUICE_RUNTIME_ATTEND_PANEL_CURSOR_H_
#define SLUICE_RUNTIME_ATTEND_PANEL_CURSOR_H_
// Turns one list row of a plan into panels of at most 64 keys. Neighbouring entries are merged into
// runs, runs are cut at absolute multiples of 64, and pieces too short to fill a panel are gathered
// together.
#include <algorithm>
#include <cstdint>

#include "sluice/api/attention_plan.h"
#include "sluice/api/pattern.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

SLUICE_BEGIN_NAMESPACE
namespace attend_internal {
// The bits of a panel's first n keys; all, or none, where n is beyond its ends.
inline uint64_t KeysBelow(int64_t n) {
  return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}

struct Panel {
  int64_t start = 0, n = 0;
  const uint32_t* ids = nullptr;        // original keys; null: [start, start + n)
  int table = 0;                        // > 0: rows of that summary table
  MaskClass mask = MaskClass::kCausal;  // kCausal, kLowerBound or kNone
  bool has_bias = false;
  float bias[kernels::kPanelKeys];     // log2 units
  uint64_t rows[kernels::kPanelKeys];  // row masks, when the branch has them
  uint32_t rank[kernels::kPanelKeys];  // RankedPrefix
  uint32_t gather[kernels::kPanelKeys];
};

// Where the queries of a tile stand.
struct TilePositions {
  const AttentionPlan* plan = nullptr;
  const AttentionBranch* branch = nullptr;
  int64_t list = 0;
  int64_t slot0 = 0;  // first slot of the tile
  int64_t count = 0;
  int64_t first = 0;  // the least position
  int64_t last = 0;   // the largest

  TilePositions(const AttentionPlan& p, const AttentionBranch& b, int64_t l, int64_t slot,
                int64_t n)
      : plan(&p), branch(&b), list(l), slot0(slot), count(n) {
    if (b.q_order.empty()) {
      first = p.position(slot);
      last = p.position(slot + n - 1);
      return;
    }
    first = p.kv_len;
    for (int64_t i = 0; i < n; ++i) {
      first = std::min(first, at(i));
      last = std::max(last, at(i));
    }
  }
  int64_t at(int64_t i) const { return plan->position(branch->Query(list, slot0 + i)); }
};

class PanelCursor {
 public:
  PanelCursor(const AttentionPlan& plan, const AttentionBranch& branch,
              const TilePositions& queries, int64_t tile, int64_t kv, int64_t head)
      : plan_(plan),
        b_(branch),
        q_(queries),
        perm_(plan.Perm(head)),
        kv_(kv),
        tile_(tile),
        pattern_(branch.encoding == Encoding::kPattern) {
    if (pattern_) {
      const int64_t end = b_.token_mask == MaskClass::kNone ? plan.kv_len : q_.last + 1;
      runs_ = pattern::PatternRuns(b_, q_.list, {q_.first, q_.last + 1}, std::min(end, plan.kv_len),
                                   plan.kv_len);
      return;
    }
    const int64_t row = b_.row_of(q_.list, tile);
    at_ = b_.rows.begin[row];
    end_ = at_ + b_.rows.count[row];
    as_listed_ = ReadsAsListed();
  }

  // The next panel, or false. A panel stays valid until the next call.
  bool Next(Panel& p) {
    if (as_listed_) return NextAsListed(p);
    if (held_) {  // a whole panel that had to wait for the gathered one before it
      held_ = false;
      Whole(p, hold_lo_, hold_hi_);
      return true;
    }
    int64_t n = 0;
    for (;;) {
      if (run_.lo >= run_.hi && !Fetch()) break;
      const bool same = n == 0 || (run_.mask == pending_mask_ && run_.table == pending_table_);
      const int64_t lo = run_.lo, hi = std::min(run_.hi, (lo | 63) + 1);
      if (hi - lo >= kWhole) {
        if (n > 0 && (b_.order == EntryOrder::kPriority || pending_table_ != run_.table))
          return Flush(p, n);
        if (n > 0) {  // finish the gathered panel first, or its storage would be overwritten
          held_ = true;
          hold_lo_ = lo;
          hold_hi_ = hi;
          held_run_ = run_;
          run_.lo = hi;
          return Flush(p, n);
        }
        held_run_ = run_;
        run_.lo = hi;
        Whole(p, lo, hi);
        return true;
      }
      if (!same) return Flush(p, n);
      if (n == 0) {
        p.has_bias = HasBias(run_);
        pending_mask_ = run_.mask;
        pending_table_ = run_.table;
      }
      while (run_.lo < hi && n < kPanel) {
        Fill(p, n, run_, run_.lo);
        p.gather[n++] = Original(run_, run_.lo++);
      }
      if (n == kPanel) return Flush(p, n);
    }
    return n > 0 && Flush(p, n);
  }

  // Every row of the tile sees every key of the panel.
  bool AllVisible(const Panel& p) const {
    if (!b_.row_mask.empty()) return false;
    if (pattern_ && (p.ids != nullptr || !runs_.Covers(p.start, p.start + p.n))) return false;
    if (p.table > 0 || p.mask == MaskClass::kNone) return true;
    int64_t lo = p.start;
    int64_t hi = p.start + p.n - 1;
    if (p.ids != nullptr) {
      lo = hi = p.ids[0];
      for (int64_t j = 1; j < p.n; ++j) {
        lo = std::min<int64_t>(lo, p.ids[j]);
        hi = std::max<int64_t>(hi, p.ids[j]);
      }
    }
    return hi <= q_.first && (p.mask != MaskClass::kLowerBound || lo > q_.last - b_.window);
  }
  // Keys that query i of the tile may see, as bits.
  uint64_t Visible(const Panel& p, int64_t i) const {
    uint64_t m = KeysBelow(p.n);
    if (p.table == 0 && p.mask != MaskClass::kNone) {
      const int64_t query = q_.at(i);
      const int64_t floor = p.mask == MaskClass::kLowerBound ? query - b_.window : -1;
      if (p.ids == nullptr) {
        m &= KeysBelow(query - p.start + 1) & ~KeysBelow(floor - p.start + 1);
      } else {
        for (int64_t j = 0; j < p.n; ++j) {
          const int64_t key = p.ids[j];
          if (key > query || key <= floor) m &= ~(uint64_t{1} << j);
        }
      }
    }
    for (int64_t j = 0; pattern_ && j < p.n; ++j) {
      const int64_t key = p.ids != nullptr ? p.ids[j] : p.start + j;
      if (!runs_.Sees(q_.at(i), key)) m &= ~(uint64_t{1} << j);
    }
    if (!b_.row_mask.empty()) {
      for (int64_t j = 0; j < p.n; ++j) {
        if (((p.rows[j] >> i) & 1) == 0) m &= ~(uint64_t{1} << j);
      }
    }
    return m;
  }
  // Entries that a stop rule by score left out.
  int64_t stopped_entries() const { return stopped_ ? end_ - at_ : 0; }
  uint64_t HeadSees(const Panel& p, int64_t head) const {
    if (b_.encoding != Encoding::kRankedPrefix) return ~uint64_t{0};
    const uint32_t prefix = b_.prefix[head * b_.num_tiles + tile_];
    uint64_t m = 0;
    for (int64_t j = 0; j < p.n; ++j) m |= static_cast<uint64_t>(p.rank[j] < prefix) << j;
    return m;
  }

 private:
  static constexpr int64_t kPanel = static_cast<int64_t>(kernels::kPanelKeys);
  static constexpr int64_t kWhole = 48;  // shorter pieces are gathered
  static constexpr int64_t kApart = 4;   // mean distance of keys among which no piece is whole
  struct Run {
    int64_t lo = 0, hi = 0;
    MaskClass mask = MaskClass::kCausal;
    int table = 0;
    float bias = 0;
    uint64_t rows = ~uint64_t{0};
    uint32_t rank = 0;
    bool Extends(const Run& next) const {
      return hi == next.lo && mask == next.mask && table == next.table && bias == next.bias &&
             rows == next.rows && rank == next.rank;
    }
  };

  // Scores of a stop rule are no part of the logits.
  bool EntryBias() const { return !b_.entry_bias.empty() && b_.stop != StopRule::kScore; }
  bool HasBias(const Run& r) const { return EntryBias() || !plan_.key_bias.empty() || r.table > 0; }
  uint32_t Original(const Run& r, int64_t key) const {
    return r.table > 0 || perm_ == nullptr ? static_cast<uint32_t>(key) : perm_[key];
  }
  void Fill(Panel& p, int64_t j, const Run& r, int64_t key) const {
    if (!b_.row_mask.empty()) p.rows[j] = r.rows;
    if (b_.encoding == Encoding::kRankedPrefix) p.rank[j] = r.rank;
    if (!HasBias(r)) return;
    float bias = EntryBias() ? r.bias : 0;
    if (r.table > 0) {
      const SummaryTable& t = plan_.tables[r.table - 1];
      bias += t.log_count[t.at(kv_, key)];
    } else if (!plan_.key_bias.empty()) {
      bias += plan_.key_bias[kv_ * plan_.kv_len + Original(r, key)];
    }
    p.bias[j] = bias * kernels::kLog2E;
  }
  void Whole(Panel& p, int64_t lo, int64_t hi) {
    const Run& r = held_run_;
    p.start = lo;
    p.n = hi - lo;
    p.table = r.table;
    p.mask = r.mask;
    p.ids = r.table > 0 || perm_ == nullptr ? nullptr : perm_ + lo;
    p.has_bias = HasBias(r);
    if (p.has_bias || !b_.row_mask.empty() || b_.encoding == Encoding::kRankedPrefix) {
      for (int64_t j = 0; j < p.n; ++j) Fill(p, j, r, lo + j);
    }
    Pad(p);
  }
  // Tokens far apart that all queries of the tile see and of which nothing else is said: the list
  // holds the panels as they are.
  bool ReadsAsListed() const {
    if (b_.encoding != Encoding::kTokens || b_.order != EntryOrder::kAscending || at_ == end_)
      return false;
    if (perm_ != nullptr || !plan_.key_bias.empty() || !b_.entry_bias.empty() ||
        !b_.row_mask.empty())
      return false;
    const int64_t first = b_.tokens[at_];
    const int64_t last = b_.tokens[end_ - 1];
    const bool seen = b_.token_mask == MaskClass::kNone ||
                      (b_.token_mask != MaskClass::kLowerBound && last <= q_.first);
    return seen && last - first >= kApart * (end_ - at_);
  }
  bool NextAsListed(Panel& p) {
    if (at_ == end_) return false;
    p.start = 0;
    p.n = std::min(kPanel, end_ - at_);
    p.ids = &b_.tokens[at_];
    p.table = 0;
    p.mask = MaskClass::kNone;
    p.has_bias = false;
    at_ += p.n;
    return true;
  }
  bool Flush(Panel& p, int64_t n) {
    p.start = 0;
    p.n = n;
    p.ids = p.gather;
    p.table = pending_table_;
    p.mask = pending_mask_;
    Pad(p);
    return true;
  }
  static void Pad(Panel& p) {
    if (p.has_bias) std::fill(p.bias + p.n, p.bias + kPanel, 0.0f);
  }

  bool Read(int64_t at, Run& r) const {
    r = Run{};
    const size_t i = static_cast<size_t>(at);
    if (!b_.row_mask.empty()) r.rows = b_.row_mask[i];
    if (!b_.entry_bias.empty()) r.bias = b_.entry_bias[i];
    MaskClass mask = b_.token_mask;
    if (b_.encoding == Encoding::kTokens) {
      r.lo = b_.tokens[i];
      r.hi = r.lo + 1;
    } else if (b_.encoding == Encoding::kRankedPrefix) {
      r.lo = static_cast<int64_t>(b_.tokens[i]) * b_.block;
      r.hi = std::min(r.lo + b_.block, plan_.kv_len);
      r.rank = static_cast<uint32_t>(at - first_entry_);
    } else {
      const PlanEntry& e = b_.entries[i];
      EntryKeys(b_, e, plan_.kv_len, &r.lo, &r.hi);
      mask = e.mask;
      if (e.state == EntryState::kSummary) {
        r.table = e.level;
        r.mask = MaskClass::kNone;
        return true;
      }
    }
    Restrict(mask, r);
    return true;
  }
  // Gives a run its mask, and cuts off what no query of the tile sees.
  void Restrict(MaskClass mask, Run& r) const {
    r.mask = mask == MaskClass::kNone         ? MaskClass::kNone
             : mask == MaskClass::kLowerBound ? MaskClass::kLowerBound
                                              : MaskClass::kCausal;
    if (perm_ != nullptr || r.mask == MaskClass::kNone) return;
    r.hi = std::min(r.hi, q_.last + 1);
    if (r.mask == MaskClass::kLowerBound) {
      r.lo = std::max(r.lo, q_.first - b_.window + 1);
      if (r.lo > q_.last - b_.window) r.mask = MaskClass::kCausal;  // the bound binds no row
    }
    if (r.lo >= r.hi) r.lo = r.hi = -1;  // clipped away; touches no neighbour
  }
  // The next run of the list or pattern; false at the end.
  bool ReadNext(Run& r) {
    if (!pattern_) {
      if (at_ >= end_ || stopped_) return false;
      if (b_.stop == StopRule::kScore && b_.entry_bias[at_] < b_.stop_tau) {
        stopped_ = true;
        return false;
      }
      return Read(at_++, r);
    }
    pattern::KeyRange range;
    if (!runs_.Next(range)) return false;
    r = Run{};
    r.lo = range.lo;
    r.hi = range.hi;
    Restrict(b_.token_mask, r);
    return true;
  }
  // Loads the next run, extended by the entries that continue it. False at the end of the list.
  bool Fetch() {
    if (first_entry_ < 0) first_entry_ = at_;
    if (!have_next_ && !ReadNext(next_)) return false;
    run_ = next_;
    have_next_ = false;
    while (ReadNext(next_)) {
      if (!run_.Extends(next_)) {
        have_next_ = true;
        break;
      }
      run_.hi = next_.hi;
    }
    return true;
  }

  const AttentionPlan& plan_;
  const AttentionBranch& b_;
  TilePositions q_;
  const uint32_t* perm_;
  int64_t kv_;
  int64_t tile_;
  bool pattern_;
  bool as_listed_ = false;
  pattern::PatternRuns runs_;
  int64_t at_ = 0;
  int64_t end_ = 0;
  int64_t first_entry_ = -1;
  bool stopped_ = false;
  Run run_, next_, held_run_;
  bool have_next_ = false, held_ = false;
  int64_t hold_lo_ = 0, hold_hi_ = 0;
  MaskClass pending_mask_ = MaskClass::kCausal;
  int pending_table_ = 0;
};
}  // namespace attend_internal
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_PANEL_CURSOR_H_
