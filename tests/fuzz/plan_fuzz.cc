// What a plug-in wrote into the record of a plan: it is refused, or it runs. Storage is cut to
// size, so that a plan which passes the checks and still reads or writes beside it is found; so is
// one whose result depends on what lay in the workspace, or differs from the plain loops.
#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/executor.h"
#include "sluice/api/plan_codec.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/attend_reference.h"
#include "sluice/tests/fuzz/near_values.h"

namespace {
using namespace sluice;

// Queries, keys and values of a call, in memory of exactly their size.
struct Problem {
  int64_t queries = 1;
  int64_t keys = 1;
  int32_t heads = 1;
  int32_t kv_heads = 1;
  std::vector<float> q, k, v;
  std::vector<int32_t> positions;
  AttentionInputs in;
};
constexpr int64_t kWidth = 4;

std::vector<float> Waves(int64_t n, float step) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    x[static_cast<size_t>(i)] = std::sin(static_cast<float>(i) * step);
  return x;
}

std::unique_ptr<Problem> MakeProblem(NearValues& from) {
  auto p = std::make_unique<Problem>();
  p->kv_heads = static_cast<int32_t>(from.Within(1, 2));
  p->heads = p->kv_heads * static_cast<int32_t>(from.Within(1, 2));
  p->queries = from.Within(1, 80);
  p->keys = p->queries + from.Within(0, 150);
  p->q = Waves(p->queries * p->heads * kWidth, 0.7f);
  p->k = Waves(p->keys * p->kv_heads * kWidth, 0.3f);
  p->v = Waves(p->keys * p->kv_heads * kWidth, 1.1f);
  const auto view = [](const std::vector<float>& x, int64_t rows, int64_t heads) {
    return HeadsView<const float>(x.data(), rows, heads, kWidth, heads * kWidth, kWidth);
  };
  p->in.q = view(p->q, p->queries, p->heads);
  p->in.k = AsKv(view(p->k, p->keys, p->kv_heads));
  p->in.v = AsKv(view(p->v, p->keys, p->kv_heads));
  p->in.q_begin = p->keys - p->queries;
  if (from.Within(0, 7) == 0) {
    for (int64_t i = 0; i < p->queries; ++i)
      p->positions.push_back(static_cast<int32_t>(i < 3 ? i : i + p->in.q_begin));
    p->in.q_positions = p->positions;
  }
  return p;
}

PlanLayout MakeLayout(NearValues& from, const Problem& p) {
  PlanLayout layout;
  const int64_t branches = from.Within(1, 3);
  for (int64_t i = 0; i < branches; ++i) {
    BranchLayout b;
    b.rows = p.heads * from.UpTo(p.queries) + from.Within(0, 9);
    b.entry_slots = from.UpTo(5);
    b.token_slots = from.UpTo(9);
    b.prefix_slots = p.heads * from.UpTo(p.queries);
    b.order_slots = from.Within(0, 1) * p.heads * from.UpTo(p.queries);
    b.terms = static_cast<int32_t>(from.UpTo(5));
    b.bias = static_cast<uint8_t>(from.Within(0, 1));
    b.mask = static_cast<uint8_t>(from.Within(0, 1));
    layout.AddBranch(b);
  }
  layout.max_tile = 1 + from.UpTo(79);
  layout.weight_slots = from.Within(0, 1) * branches * p.queries * p.heads;
  layout.perm_slots = from.Within(0, 1) * p.heads * p.keys;
  layout.bias_slots = from.Within(0, 1) * p.kv_heads * p.keys;
  return layout;
}

// Summaries in the router's own memory: how much there is of it, the host has to believe.
struct Summaries {
  std::vector<float> k, v, log_count;
  std::vector<uint32_t> begin, count;
};

// Fills a record the way a plug-in may: mostly as it should be, here and there as it pleases.
class Stranger {
 public:
  Stranger(NearValues& from, const Problem& p, sluice_attention_plan& r)
      : from_(from), p_(p), r_(r) {}

  void Write() {
    r_.q_begin = from_.Near(p_.in.q_begin);
    r_.q_count = from_.Near(p_.queries);
    r_.kv_len = from_.Near(p_.keys);
    r_.heads = static_cast<int32_t>(from_.Near(p_.heads));
    r_.kv_heads = static_cast<int32_t>(from_.Near(p_.kv_heads));
    r_.num_branches = static_cast<int32_t>(from_.Near(1, r_.max_branches));
    r_.merge = static_cast<uint8_t>(from_.Near(0, 2));
    r_.perm_scope = static_cast<uint8_t>(from_.Near(0, 2));
    r_.has_perm = static_cast<uint8_t>(from_.Near(0, 1));
    r_.has_key_bias = static_cast<uint8_t>(from_.Near(0, 1));
    for (int64_t i = 0; i < r_.perm_slots; ++i)
      r_.key_perm[i] = static_cast<uint32_t>(from_.Steady((i * 7) % p_.keys));
    for (int64_t i = 0; i < r_.bias_slots; ++i) r_.key_bias[i] = from_.Number();
    for (int64_t i = 0; i < r_.weight_slots; ++i) r_.branch_weight[i] = from_.Number();
    if (from_.Within(0, 3) == 0) WriteTable();
    for (int32_t i = 0; i < r_.max_branches; ++i) WriteBranch(r_.branches[i], i);
  }

 private:
  void WriteTable() {
    const int64_t rows = from_.Within(1, 9);
    table_.k = Waves(rows * p_.kv_heads * kWidth, 0.9f);
    table_.v = Waves(rows * p_.kv_heads * kWidth, 0.5f);
    table_.log_count.assign(static_cast<size_t>(rows * p_.kv_heads), 1.0f);
    table_.begin.assign(table_.log_count.size(), 0u);
    table_.count.assign(table_.log_count.size(), 1u);
    sluice_summary_table& t = r_.tables[0];
    const auto view = [&](const std::vector<float>& x) {
      return sluice_view{x.data(), 0, 0, rows, p_.kv_heads, kWidth, p_.kv_heads * kWidth, kWidth};
    };
    t.k = view(table_.k);
    t.v = view(table_.v);
    t.k.rows = std::min<int64_t>(rows, from_.Near(rows));
    t.v.rows = std::min<int64_t>(rows, from_.Near(rows));
    t.k.heads = from_.Near(p_.kv_heads);
    t.v.heads = from_.Near(p_.kv_heads);
    t.k.dim = from_.Near(kWidth);
    t.v.dim = from_.Near(kWidth);
    t.k.dtype = static_cast<int32_t>(from_.Near(0));
    t.v.dtype = static_cast<int32_t>(from_.Near(0));
    t.per_head = static_cast<uint8_t>(from_.Near(0, 1));
    t.log_count = from_.Near(1) == 1 ? table_.log_count.data() : nullptr;
    t.begin = from_.Near(1) == 1 ? table_.begin.data() : nullptr;
    t.count = from_.Near(1) == 1 ? table_.count.data() : nullptr;
    r_.num_tables = static_cast<int32_t>(from_.Near(1));
  }

  void WriteBranch(sluice_plan_branch& b, int32_t index) {
    b.tile = from_.Near(1, 80);
    b.block = from_.Near(1, 20);
    b.window = from_.Near(1, 60);
    b.scope = static_cast<uint8_t>(from_.Near(0, 2));
    b.encoding = static_cast<uint8_t>(from_.Near(0, 4));
    b.token_mask = static_cast<uint8_t>(from_.Near(1, 4));
    b.order = static_cast<uint8_t>(from_.Near(0, 1));
    b.stop = static_cast<uint8_t>(from_.Within(0, 7) == 0 ? from_.Near(1, 2) : 0);
    b.stop_tau = from_.Number();
    b.init_from = static_cast<int32_t>(from_.Near(-1, index - 1));
    b.has_bias = static_cast<uint8_t>(from_.Near(0, b.layout.bias));
    b.has_mask = static_cast<uint8_t>(from_.Near(0, b.layout.mask));
    b.has_order = static_cast<uint8_t>(from_.Near(0, b.layout.order_slots > 0 ? 1 : 0));
    const int64_t tile = std::max<int64_t>(1, b.tile);
    b.num_tiles = from_.Near(b.has_order ? from_.Within(0, 5) : (p_.queries - 1) / tile + 1);
    WriteRows(b);
    WriteOrder(b);
    WriteTerms(b);
    // What is the host's own, last.
    if (from_.Within(0, 255) == 255) ++b.layout.rows;
    if (from_.Within(0, 255) == 255) b.tokens = nullptr;
  }

  // Rows in their own slots, or anywhere in the pool; entries and ids that rise.
  void WriteRows(sluice_plan_branch& b) {
    const bool by_token = b.encoding == 2 || b.encoding == 3;
    const int64_t slots = by_token ? b.layout.token_slots : b.layout.entry_slots;
    for (int64_t row = 0; row < b.layout.rows; ++row) {
      b.row_begin[row] = from_.Steady(row * slots);
      b.row_count[row] = static_cast<uint32_t>(from_.Steady(from_.UpTo(slots)));
      int64_t key = 0;
      for (int64_t i = row * b.layout.token_slots; i < (row + 1) * b.layout.token_slots; ++i) {
        key += from_.Within(0, 12);
        b.tokens[i] = static_cast<uint32_t>(from_.Steady(key++));
      }
      key = 0;
      for (int64_t i = row * b.layout.entry_slots; i < (row + 1) * b.layout.entry_slots; ++i)
        WriteEntry(b.entries[i], key);
    }
    const int64_t pool = b.layout.rows * std::max(b.layout.token_slots, b.layout.entry_slots);
    for (int64_t i = 0; i < pool && b.layout.bias; ++i) b.entry_bias[i] = from_.Number();
    for (int64_t i = 0; i < pool && b.layout.mask; ++i)
      b.row_mask[i] = static_cast<uint64_t>(from_.Steady(i)) * 0x9E3779B97F4A7C15u;
    for (int64_t i = 0; i < b.layout.prefix_slots; ++i)
      b.prefix[i] = static_cast<uint32_t>(from_.Near(0, 3));
  }

  void WriteEntry(sluice_plan_entry& e, int64_t& key) {
    const int64_t len = from_.Near(1, 40);
    key += from_.Within(0, 9);
    e.start = static_cast<uint32_t>(from_.Steady(key));
    e.len = static_cast<uint32_t>(len);
    e.state = static_cast<uint8_t>(r_.num_tables > 0 ? from_.Near(0, 1) : from_.Steady(0));
    e.mask = static_cast<uint8_t>(from_.Near(1, 4));
    e.level = static_cast<uint8_t>(from_.Steady(r_.num_tables));
    key += std::clamp<int64_t>(len, 0, 40);
  }

  void WriteOrder(sluice_plan_branch& b) {
    const int64_t slots = b.layout.order_slots;
    if (slots == 0) return;
    for (int64_t i = 0; i < slots; ++i)
      b.q_order[i] = static_cast<int32_t>(from_.Steady((i * 5) % p_.queries));
    int64_t at = 0;
    const int64_t borders = std::clamp<int64_t>(b.num_tiles, 0, 100) + 1;
    for (int64_t i = 0; i < 2 * b.layout.rows + 2; ++i) {
      if (i % borders == 0) at = 0;
      b.tile_begin[i] = from_.Steady(at);
      at += from_.Within(0, 9);
    }
  }

  void WriteTerms(sluice_plan_branch& b) {
    for (int32_t i = 0; i < b.layout.terms; ++i) {
      sluice_pattern_term& t = b.terms[i];
      t.kind = static_cast<uint8_t>(from_.Near(0, 6));
      t.dims = static_cast<uint8_t>(from_.Near(1, 3));
      t.a = from_.Near(0, 30);
      t.b = from_.Near(0, 10);
      t.slope = from_.Within(0, 3) == 0 ? from_.Number() : 0;
      for (int x = 0; x < 3; ++x) {
        t.extent[x] = static_cast<int32_t>(from_.Near(1, 60));
        t.window[x] = static_cast<int32_t>(from_.Near(1, 9));
        t.stride[x] = static_cast<int32_t>(from_.Near(1, 2));
        t.dilation[x] = static_cast<int32_t>(from_.Near(1, 2));
      }
    }
    if (b.layout.terms == 0) return;
    const int64_t lists = std::max<int64_t>(b.layout.rows, 1);
    for (int64_t l = 0; l <= lists; ++l)
      b.term_begin[l] =
          static_cast<int32_t>(from_.Steady(std::min<int64_t>(b.layout.terms, l * 2)));
  }

  NearValues& from_;
  const Problem& p_;
  sluice_attention_plan& r_;
  Summaries table_;
};

struct Outcome {
  std::vector<float> o, lse, mass, row_max;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

// The executor over a workspace full of `fill`.
Outcome RunPlan(const Attend& attend, const AttentionPlan& plan, const Problem& p, int fill,
                bool feedback) {
  OwnedWorkspace memory(attend.workspace_bytes());
  std::memset(memory.data(), fill, memory.bytes());
  Outcome out;
  out.o.resize(static_cast<size_t>(p.queries * p.heads * kWidth));
  out.lse.resize(static_cast<size_t>(p.queries * p.heads));
  out.mass.resize(static_cast<size_t>(p.heads * plan.kv_len));
  out.row_max.resize(out.lse.size());
  AttendOutputs to;
  to.o = {out.o.data(), p.queries, p.heads, kWidth, p.heads * kWidth, kWidth};
  if (plan.merge == Merge::kLse) {
    to.lse = out.lse.data();
    if (feedback) to.feedback = {out.mass.data(), nullptr, out.row_max.data()};
  }
  AttentionCounters counters;
  to.counters = &counters;
  InlineExecutor one;
  const AttendInputs in = {p.in.q, p.in.k, p.in.v, p.in.scale};
  const absl::Status s = attend.Run(plan, in, {memory.workspace(), &one}, to);
  if (!s.ok()) out = {};
  // NaN compares unequal to itself.
  for (std::vector<float>* x : {&out.o, &out.lse, &out.mass, &out.row_max}) {
    for (float& f : *x) f = std::isnan(f) ? 12345.0f : f;
  }
  return out;
}

std::string Describe(const AttentionPlan& p) {
  std::string text =
      absl::StrCat("merge ", static_cast<int>(p.merge), ", ", p.q_count, " queries from ",
                   p.q_begin, " of ", p.kv_len, " keys, heads ", p.heads, "/", p.kv_heads,
                   ", permuted ", p.key_perm.size(), ", biases ", p.key_bias.size());
  for (const AttentionBranch& b : p.branches)
    absl::StrAppend(&text, "\n  encoding ", static_cast<int>(b.encoding), ", scope ",
                    static_cast<int>(b.scope), ", ", b.num_tiles, " tiles of ", b.tile, ", block ",
                    b.block, ", mask ", static_cast<int>(b.token_mask), ", window ", b.window,
                    ", order ", static_cast<int>(b.order), ", from ", b.init_from, ", ordered ",
                    b.q_order.size(), ", biases ", b.entry_bias.size(), ", masks ",
                    b.row_mask.size());
  return text;
}

// What floats hold and doubles hold are two things.
bool Moderate(absl::Span<const float> x) {
  return std::all_of(x.begin(), x.end(),
                     [](float f) { return std::fabs(f) < 1e4f || f == -HUGE_VALF; });
}

// Whether the plain loops give the same; stop rules are not theirs.
bool AsReference(const AttentionPlan& plan, const Problem& p, const Outcome& got) {
  if (!Moderate(plan.key_bias) || !Moderate(plan.branch_weight)) return true;
  for (const AttentionBranch& b : plan.branches) {
    if (b.stop != StopRule::kNone || !Moderate(b.entry_bias)) return true;
  }
  const ReferenceAttention want =
      AttendReference(plan, p.in.q, p.in.k, p.in.v, static_cast<double>(p.in.scale));
  double most = 1;
  for (double x : want.o) most = std::max(most, std::fabs(x));
  for (size_t i = 0; i < want.o.size(); ++i) {
    const double x = std::isnan(want.o[i]) ? 12345.0 : want.o[i];
    if (std::fabs(x - static_cast<double>(got.o[i])) <= 1e-3 * most) continue;
    std::fprintf(stderr, "o[%zu] is %g, wanted %g; %s\n", i, static_cast<double>(got.o[i]), x,
                 Describe(plan).c_str());
    return false;
  }
  return true;
}

void Die(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  NearValues from(data, size);
  const std::unique_ptr<Problem> p = MakeProblem(from);
  const PlanLayout layout = MakeLayout(from, *p);
  const auto storage = PlanStorage::Create(layout);
  if (!storage.ok()) return 0;
  AttendOptions options;
  options.mode = from.Within(0, 7) == 0 ? AttendMode::kKvMajor : AttendMode::kQueryMajor;
  options.split_keys = 64 * from.Within(0, 2);
  options.token_group = from.Within(1, 8);
  options.feedback = from.Within(0, 1) == 1;

  Stranger stranger(from, *p, *(*storage)->record());
  plan_codec::Offer(**storage);
  stranger.Write();
  if (!plan_codec::Take(p->in, **storage).ok()) return 0;

  AttendShape shape;
  shape.max_queries = p->queries;
  shape.max_kv = p->keys;
  shape.heads = p->heads;
  shape.kv_heads = p->kv_heads;
  shape.head_dim = kWidth;
  shape.value_dim = kWidth;
  shape.max_tile = 1;
  shape.Cover(layout);
  const auto attend = Attend::Create(shape, options);
  if (!attend.ok()) return 0;
  const AttentionPlan& plan = (*storage)->plan();
  const Outcome got = RunPlan(*attend, plan, *p, 0, options.feedback);
  if (got.o.empty()) return 0;
  if (!(got == RunPlan(*attend, plan, *p, 0xFF, options.feedback)))
    Die("the result depends on what lay in the workspace");
  if (!AsReference(plan, *p, got)) Die("the result is not that of the plain loops");
  return 0;
}
