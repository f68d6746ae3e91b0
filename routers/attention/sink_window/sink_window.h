#ifndef SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
#define SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
// The first keys and a sliding window, whatever the scores: "Efficient Streaming Language Models
// with Attention Sinks" (arXiv 2309.17453), and the lower anchor of every density curve. With
// last_dense, the prompt's last queries see everything: the triangle shape of TriangleMix and of
// Flux Attention's `triangle` mode (arXiv 2604.07394).
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"

SLUICE_BEGIN_NAMESPACE
class SinkWindow {
 public:
  static constexpr absl::string_view kName = "sink_window";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = true, kScatteredQueries = true;
  struct Config {
    int64_t sink = 64, window = 1024, last_dense = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys that every query sees");
      v("window", window, Range<int64_t>{1, int64_t{1} << 31},
        "last keys that a query sees, itself included");
      v("last_dense", last_dense, Range<int64_t>{0, 1 << 20},
        "last prompt queries that see every key, rounded up to tiles of 64; needs a host that "
        "gives prompt_end");
    }
  };
  struct Plan : AttentionPlanInfo {};
  static Config FullBudget() { return {0, int64_t{1} << 31, 0}; }
  static absl::StatusOr<SinkWindow> Create(const Config& c) { return SinkWindow(c); }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.max_rows = attention_common::MaxTiles(s, kTile);
    p.entry_slots = 2;
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext&,
                   PlanWriter& out) const {
    PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kAllHeads, kTile);
    header.window = config_.window;
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kRuns, 1));
    for (int64_t tile = 0; tile < header.num_tiles(); ++tile) {
      const auto q = attention_common::QueriesOf(header, tile);
      PlanEntry* e = out.entries(out.row_of(0, tile));
      int64_t n = 0;
      if (q.last >= in.prompt_end - config_.last_dense && q.last < in.prompt_end) {
        e[n++] = {0, static_cast<uint32_t>(q.last + 1), EntryState::kExact, MaskClass::kCausal, 0,
                  1};
        out.set_count(out.row_of(0, tile), n);
        continue;
      }
      const int64_t sink = std::min(config_.sink, q.last + 1);
      if (sink > 0)
        e[n++] = {0, static_cast<uint32_t>(sink), EntryState::kExact, MaskClass::kCausal, 0, 1};
      const int64_t lo = std::max(sink, q.first - config_.window + 1);
      if (lo <= q.last)
        e[n++] = {static_cast<uint32_t>(lo),
                  static_cast<uint32_t>(q.last + 1 - lo),
                  EntryState::kExact,
                  MaskClass::kLowerBound,
                  0,
                  1};
      out.set_count(out.row_of(0, tile), n);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kTile = 64;
  explicit SinkWindow(const Config& c) : config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
