// A router as a plug-in, complete: every query sees the first block, its own neighbourhood, and
// every stride-th block.
#include "sluice/api/plugin.h"

namespace {
using namespace sluice;
class Strided {
 public:
  static constexpr absl::string_view kName = "strided";
  static constexpr bool kExactAtFullBudget = true,
                        kTokenCausal = false;  // a tile's list is its last query's
  struct Config {
    int64_t stride = 8, local = 4;
    template <class V>
    void VisitFields(V&& v) {
      v("stride", stride, Range<int64_t>{1, 1 << 20},
        "every how many blocks of 64 keys one is kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept");
    }
  };
  struct Plan : AttentionPlanInfo {};
  static Config FullBudget() { return {1, 1}; }
  static absl::StatusOr<Strided> Create(const Config& c) { return Strided{c}; }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.max_rows = (s.max_queries + kBlock - 1) / kBlock;
    p.entry_slots = (s.max_kv + kBlock - 1) / kBlock;
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext&,
                   PlanWriter& out) const {
    PlanHeader header;
    header.q_begin = in.q_begin;
    header.q_count = in.q.rows;
    header.kv_len = in.kv_len();
    header.heads = p.shape.heads;
    header.kv_heads = p.shape.kv_heads;
    header.scope = ListScope::kAllHeads;
    header.tile = kBlock;
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kBlocks, kBlock));
    for (int64_t tile = 0; tile < header.num_tiles(); ++tile) {
      const int64_t last =
                        std::min(in.q_begin + in.q.rows, in.q_begin + (tile + 1) * header.tile) - 1,
                    own = last / kBlock;
      const int64_t first = (in.q_begin + tile * header.tile) / kBlock;
      int64_t n = 0;
      for (int64_t b = 0; b <= own; ++b) {
        if (b % config.stride == 0 || b > first - config.local)
          out.entries(tile)[n++] = {static_cast<uint32_t>(b), 1, EntryState::kExact,
                                    MaskClass::kCausal,       0, 0};
      }
      out.set_count(tile, n);
    }
    return absl::OkStatus();
  }
  Config config;

 private:
  static constexpr int64_t kBlock = 64;
};
}  // namespace
SLUICE_PLUGIN("strided", "1.0.0", Strided)
