#ifndef SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
#define SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
// Every causal key: the baseline, and what every full budget must equal.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"

SLUICE_BEGIN_NAMESPACE
class Dense {
 public:
  static constexpr absl::string_view kName = "dense";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = true, kScatteredQueries = true;
  struct Config {
    int64_t tile = 64;
    template <class V>
    void VisitFields(V&& v) {
      v("tile", tile, Range<int64_t>{1, 64}, "queries that share a pass over the keys");
    }
  };
  struct Plan : AttentionPlanInfo {};
  static Config FullBudget() { return {}; }
  static absl::StatusOr<Dense> Create(const Config& c) { return Dense(c); }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.max_rows = s.kv_heads * attention_common::MaxTiles(s, config_.tile);
    p.entry_slots = 1;
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext&,
                   PlanWriter& out) const {
    const PlanHeader header =
        attention_common::HeaderOf(p.shape, in, ListScope::kKvHead, config_.tile);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kRuns, 1));
    for (int64_t list = 0; list < p.shape.kv_heads; ++list) {
      for (int64_t tile = 0; tile < header.num_tiles(); ++tile) {
        const int64_t row = out.row_of(list, tile);
        out.entries(row)[0] = {
            0,
            static_cast<uint32_t>(attention_common::QueriesOf(header, tile).last + 1),
            EntryState::kExact,
            MaskClass::kCausal,
            0,
            0};
        out.set_count(row, 1);
      }
    }
    return absl::OkStatus();
  }

 private:
  explicit Dense(const Config& c) : config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
