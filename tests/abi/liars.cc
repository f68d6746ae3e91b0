// Routers whose plans and assignments are wrong in one way each: found out at run time, by the
// codecs.
#include <cstring>
#include <limits>

#include "sluice/api/plugin.h"

namespace {
using namespace sluice;

class Liar {
 public:
  static constexpr AttentionTraits kTraits = {.name = "liar", .exact_at_full_budget = false};
  struct Config {
    int64_t how = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("how", how, Range<int64_t>{0, 99}, "which rule is broken");
    }
  };
  struct Plan : AttentionPlanInfo {};

  static absl::StatusOr<Liar> Create(const Config& c) { return Liar{c}; }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan;
    plan.layout.max_tile = 64;
    plan.layout.AddBranch({.rows = s.max_queries,
                           .entry_slots = 4,
                           .token_slots = 4,
                           .order_slots = config.how == 37 ? s.max_queries : 0,
                           .terms = config.how == 35 || config.how == 36 ? 1 : 0});
    if (config.how == 20) plan.layout.branches[0].rows = int64_t{1} << 61;
    if (config.how == 21) plan.layout.branches[0].token_slots = -4;
    if (config.how == 22) plan.layout.num_branches = 0;
    if (config.how == 23) plan.layout.num_branches = 99;
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext&,
                   PlanBuilder& out) const {
    const int how = static_cast<int>(config.how);
    if (how == 1) return absl::OkStatus();  // sets nothing
    out.Begin(in.q_begin, in.q.rows, in.kv_len(), plan.shape.heads, plan.shape.kv_heads);
    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter branch,
        out.AddBranch({.encoding = Encoding::kTokens, .scope = ListScope::kAllHeads, .tile = 1}));
    for (int64_t i = 0; i < in.q.rows; ++i) {
      for (uint32_t j = 0; j < 4; ++j) branch.tokens(i)[j] = j;
      branch.set_count(i, 4);
    }
    uint32_t* last = branch.tokens(in.q.rows - 1);
    sluice_attention_plan& r = *out.record();
    sluice_plan_branch& b = r.branches[0];
    switch (how) {
      case 2:
        last[3] = 0xFFFFFFFF;
        break;  // padded with -1, as many top-k kernels do
      case 3:
        last[3] = static_cast<uint32_t>(in.kv_len());
        break;
      case 4:
        last[3] = 2;
        break;  // twice
      case 5:
        std::swap(last[2], last[3]);
        break;  // not ascending
      case 6:
        branch.set_count(0, 5000);
        break;
      case 7:
        b.row_begin[0] = -8;
        break;
      case 8:
        b.row_begin[0] = int64_t{1} << 60;
        break;
      case 9:
        b.encoding = 77;
        break;
      case 10:
        b.scope = 3;
        break;
      case 11:
        b.tokens = nullptr;
        break;  // storage that is not the host's
      case 12:
        b.layout.rows *= 1000;
        break;
      case 13:
        r.num_branches = 5;
        break;
      case 14:
        r.q_count = 1 << 20;
        break;
      case 15:
        r.kv_len += 1000;
        break;
      case 16:
        r.heads = 0;
        break;
      case 17:
        b.num_tiles = 1;
        break;
      case 18:
        b.has_mask = 1;
        break;  // asked for none
      case 19:
        r.has_perm = 1;
        break;
      case 24:
        b.init_from = 0;
        break;
      case 25:
        r.num_tables = 3;
        break;  // never filled
      case 26:
        b.encoding = static_cast<uint8_t>(Encoding::kPattern);
        break;
      case 27:
        b.tile = 0;
        break;
      case 28:
        r.merge = 1;
        break;  // weights that it did not ask for
      case 29:
        --r.q_begin;
        break;  // its queries would see what is after them
      case 30:
        r.merge = 2;
        break;  // a mean needs an order
      case 31:
        r.q_count = kMost;
        break;
      case 32:
        b.tile = kMost;
        break;
      case 33:
        b.block = kMost;
        break;
      case 34:
        b.token_mask = 2;
        b.window = std::numeric_limits<int64_t>::min();
        break;
      case 35:
      case 36:
        LieInPattern(how, b);
        break;
      case 37:
        b.has_order = 1;
        b.num_tiles = 1;
        b.tile_begin[1] = kMost;
        break;
      case 38:
        r.num_tables = 1;
        r.tables[0] = {};
        r.tables[0].k.rows = kMost;
        break;
      case 39:
        r.num_tables = 1;
        r.tables[0] = {};
        r.tables[0].k.heads = r.tables[0].v.heads = r.kv_heads;
        r.tables[0].k.dtype = 77;
        break;
      default:
        break;
    }
    return absl::OkStatus();
  }

  static void LieInPattern(int how, sluice_plan_branch& b) {
    b.encoding = static_cast<uint8_t>(Encoding::kPattern);
    b.scope = 2;
    b.term_begin[0] = 0;
    b.term_begin[1] = 1;
    PatternTerm t = {.kind = PatternKind::kDilated, .a = kMost, .b = 2};
    if (how == 36) {
      t = {.kind = PatternKind::kBox, .dims = 3};
      for (int x = 0; x < 3; ++x) {
        t.extent[x] = std::numeric_limits<int32_t>::max();
        t.window[x] = 1;
      }
    }
    std::memcpy(static_cast<void*>(b.terms), &t, sizeof t);
  }

  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  Config config;
};

// The same of assignments: three items, two units.
class AssignmentLiar {
 public:
  static constexpr RouteTraits kTraits = {.name = "token/assignment_liar"};
  using Config = Liar::Config;
  struct Plan : RoutePlanInfo {};

  static absl::StatusOr<AssignmentLiar> Create(const Config& c) { return AssignmentLiar{c}; }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan plan;
    plan.shape = s;
    plan.shape.units = 2;
    plan.max_entries = 2 * s.items;
    plan.max_dropped = 2;
    return plan;
  }

  absl::Status Run(const Plan&, const RouteInputs& in, const RunContext&, Assignment& out) const {
    for (int64_t i = 0; i < in.items; ++i) {
      out.row_ptr[i + 1] = i + 1;
      out.unit[i] = 1;
      out.weight[i] = 1;
    }
    switch (config.how) {
      case 1:
        out.nan_scores = -1;
        break;
      case 2:
        out.units = 3;
        break;
      case 3:
        out.items = 2;
        break;
      case 4:
        out.row_ptr[1] = 2;
        out.row_ptr[2] = 1;
        break;  // falls
      case 5:
        out.row_ptr[in.items] = int64_t{1} << 40;
        break;
      case 6:
        out.unit[0] = 2;
        break;
      case 7:
        out.unit[0] = -1;
        break;
      case 8:
        out.weight[1] = std::numeric_limits<float>::infinity();
        break;
      case 9:
        out.num_dropped = 3;
        break;
      case 10:
        out.num_dropped = 1;
        out.dropped[0] = {3, 0};
        break;
      case 11:
        out.row_ptr[0] = 1;
        break;
      default:
        break;
    }
    return absl::OkStatus();
  }
  Config config;
};
}  // namespace
SLUICE_PLUGIN("liars", "1.0.0", Liar, AssignmentLiar)
