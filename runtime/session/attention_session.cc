#include "sluice/runtime/session/attention_session.h"

#include <chrono>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "sluice/policies/compose/attention.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/session/row_fingerprints.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using Clock = std::chrono::steady_clock;
double Since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}
// The built-in routers, with weights read from GGUF files.
const Registry& Methods() {
  static const Registry* methods = [] {
    auto* r = new Registry;
    const absl::Status added = AddBuiltinRouters(*r);
    SLUICE_DCHECK(added.ok());
    r->OpenWeightsWith(OpenWeights);
    return r;
  }();
  return *methods;
}
// Single queries over short lists run without waking threads: that takes longer than the work.
constexpr int64_t kShortPlan = 65536;      // keys
constexpr int64_t kShortStep = 4'000'000;  // multiply-adds

// An upper bound of the multiply-adds of a plan of one query.
int64_t StepWork(const AttentionPlan& p, int64_t width) {
  int64_t pairs = 0;
  for (const AttentionBranch& b : p.branches) {
    const int64_t heads = p.heads / std::max<int64_t>(1, b.num_lists);
    if (b.encoding == Encoding::kPattern) pairs += p.heads * p.kv_len;
    for (int64_t r = 0; r < std::ssize(b.rows.count); ++r) {
      for (uint32_t e = 0; e < b.rows.count[r]; ++e) {
        const bool tokens = b.encoding == Encoding::kTokens;
        const int64_t len = b.ByToken() ? 1 : b.entries[b.rows.begin[r] + e].len;
        pairs += heads * len * (tokens ? 1 : b.block);
      }
    }
  }
  return pairs * width;
}
}  // namespace

struct AttentionSession::Impl {
  // What is known of one layer of one sequence.
  struct Layer {
    OwnedWorkspace state;
    int64_t keys = 0;
    bool made = false;
    bool unknown = false;
    RowFingerprints rows;
    std::unique_ptr<PlanStorage> kept;
  };
  struct Sequence final : PlanLender {
    std::vector<Layer> layers;
    OwnedWorkspace shared;
    PlanBuilder* Kept(int64_t layer) const override {
      if (layer < 0 || layer >= std::ssize(layers)) return nullptr;
      return layers[layer].kept.get();
    }
  };
  struct Measured {
    AttentionCounters counters;
    double plan_s = 0;
    double attend_s = 0;
  };

  SessionOptions options;
  std::unique_ptr<const AttentionRouter> router;
  std::unique_ptr<const AttentionRouter::Plan> plan;
  std::unique_ptr<Executor> own_executor;
  Executor* executor = nullptr;
  InlineExecutor alone;
  std::unique_ptr<sluice::Attend> attend;
  std::unique_ptr<PlanStorage> storage;
  OwnedWorkspace plan_workspace, attend_workspace;
  std::map<int64_t, Sequence> sequences;
  std::vector<Measured> measured;
  std::vector<float> state_m, state_l, state_o, lse, key_mass, head_norm, row_max;
  std::function<void(int, const AttentionPlan&, const AttentionInputs&, double)> see;

  const Measured& At(int layer) const { return measured[layer < 0 ? options.layers : layer]; }
  absl::Status Prepare();
  absl::StatusOr<Sequence*> SequenceOf(int64_t id);
  absl::StatusOr<int> PlaceOf(int named) const;
  absl::StatusOr<Sequence*> Checked(int layer, const AttentionInputs& in, int64_t sequence);
  absl::Status MakeLayer(Layer& l);
  // Whether anything is remembered that earlier keys could belie.
  bool remembers() const {
    const AttentionPlanInfo& info = plan->info();
    return info.state_bytes > 0 || info.sequence_bytes > 0 || info.keeps_plans;
  }
  bool fingerprints() const { return options.fingerprints && remembers(); }
  RouterState StateOf(Sequence& s, int layer) const {
    return {s.layers[layer].state.data(), s.shared.data(), s.layers[layer].keys};
  }
  void Forget(Sequence& s, int layer, int64_t keys) {
    RouterState state = StateOf(s, layer);
    router->Truncate(*plan, state, keys);
    s.layers[layer].keys = state.keys;
    s.layers[layer].rows.Truncate(keys);
  }
  void CheckRows(Sequence& s, int layer, const AttentionInputs& in);
  absl::Status RunPlan(int layer, const AttentionPlan& p, const AttentionInputs& in,
                       const SessionOutputs& out, bool staged, const FeedbackOutputs& feedback);
  absl::Status Observe(Sequence& s, int layer, const AttentionRouter& serving,
                       const AttentionInputs& in);
};

absl::Status AttentionSession::Impl::Prepare() {
  const SessionOptions& o = options;
  if (o.layers < 1 || o.layers > 65536)
    return absl::InvalidArgumentError(
        absl::StrCat("session: ", o.layers, " layers, allowed 1 to 65536"));
  const Registry& methods = o.methods != nullptr ? *o.methods : Methods();
  SLUICE_ASSIGN_OR_RETURN(router, MakeAttentionPolicy(o.policy, methods.attention));
  const AttentionTraits& traits = router->traits();
  if (traits.reads_hidden && o.width == 0)
    return absl::FailedPreconditionError(
        absl::StrCat(o.policy, " reads the layers' inputs, whose width this host does not give"));
  if (traits.bidirectional && !o.bidirectional)
    return absl::FailedPreconditionError(absl::StrCat(
        o.policy,
        " has no causal mask: it is for encoders, and this host decodes from left to right"));

  if (o.executor == nullptr) own_executor = MakeTbbExecutor(o.threads);
  executor = o.executor != nullptr ? o.executor : own_executor.get();
  const AttentionShape shape = {.max_queries = o.max_queries,
                                .max_kv = o.max_kv,
                                .heads = o.heads,
                                .kv_heads = o.kv_heads,
                                .head_dim = o.head_dim,
                                .value_dim = o.value_dim > 0 ? o.value_dim : o.head_dim,
                                .index_heads = o.index_heads,
                                .index_dim = o.index_dim,
                                .workers = executor->num_workers(),
                                .layers = o.layers_known ? o.layers : 0,
                                .width = o.width};
  SLUICE_RETURN_IF_ERROR(CheckAttentionShape(shape));
  SLUICE_ASSIGN_OR_RETURN(plan, router->MakePlan(shape));
  SLUICE_ASSIGN_OR_RETURN(storage, PlanStorage::Create(plan->info().layout));
  plan_workspace.Resize(plan->info().workspace_bytes);

  AttendShape attend_shape = {.max_queries = shape.max_queries,
                              .max_kv = shape.max_kv,
                              .heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = shape.head_dim,
                              .value_dim = shape.value_dim,
                              .workers = shape.workers};
  attend_shape.Cover(plan->info().layout);
  AttendOptions attend_options = o.attend;
  attend_options.feedback = attend_options.feedback || traits.feedback != 0;
  SLUICE_ASSIGN_OR_RETURN(auto made, sluice::Attend::Create(attend_shape, attend_options));
  attend = std::make_unique<sluice::Attend>(made);
  attend_workspace.Resize(attend->workspace_bytes());

  const int64_t rows = shape.max_queries * shape.heads;
  if (traits.stages > 1) {
    state_m.resize(rows);
    state_l.resize(rows);
    state_o.resize(rows * shape.value_dim);
  }
  if (traits.stages > 1 || (traits.feedback & kLogSumExp) != 0) lse.resize(rows);
  if ((traits.feedback & kKeyMass) != 0) key_mass.resize(shape.heads * shape.max_kv);
  if ((traits.feedback & kHeadNorm) != 0) head_norm.resize(shape.heads);
  if ((traits.feedback & kRowMax) != 0) row_max.resize(rows);
  measured.resize(o.layers + 1);
  return absl::OkStatus();
}

absl::StatusOr<AttentionSession::Impl::Sequence*> AttentionSession::Impl::SequenceOf(int64_t id) {
  const auto known = sequences.find(id);
  if (known != sequences.end()) return &known->second;
  Sequence& s = sequences[id];
  const AttentionPlanInfo& info = plan->info();
  s.shared.Resize(info.sequence_bytes);
  s.layers.resize(options.layers + 1);  // the last for calls that name no layer
  return &s;
}

absl::StatusOr<int> AttentionSession::Impl::PlaceOf(int named) const {
  if (named < -1 || named >= options.layers) {
    return absl::OutOfRangeError(absl::StrCat("session: layer ", named, ", allowed 0 to ",
                                              options.layers - 1, ", or -1 for unknown"));
  }
  return named < 0 ? options.layers : named;
}
// The sequence, with no more in the layer's state than `in` leaves standing.
absl::StatusOr<AttentionSession::Impl::Sequence*> AttentionSession::Impl::Checked(
    int layer, const AttentionInputs& in, int64_t sequence) {
  SLUICE_ASSIGN_OR_RETURN(Sequence * s, SequenceOf(sequence));
  SLUICE_RETURN_IF_ERROR(MakeLayer(s->layers[layer]));
  CheckRows(*s, layer, in);
  return s;
}

absl::Status AttentionSession::Impl::MakeLayer(Layer& l) {
  if (l.made) return absl::OkStatus();
  const AttentionPlanInfo& info = plan->info();
  l.state.Resize(info.state_bytes);
  if (fingerprints()) l.rows.Reserve(options.max_kv);
  if (info.keeps_plans) {
    SLUICE_ASSIGN_OR_RETURN(l.kept, PlanStorage::Create(info.layout));
  }
  l.made = true;
  return absl::OkStatus();
}

void AttentionSession::Impl::CheckRows(Sequence& s, int layer, const AttentionInputs& in) {
  Layer& l = s.layers[layer];
  // Keys at and after the first query are new, whatever was known of them.
  const int64_t before = in.q_positions.empty() ? in.q_begin : in.kv_len();
  if (l.keys > before) Forget(s, layer, before);
  if (!l.unknown) return;
  l.unknown = false;
  if (!remembers()) return;
  if (!options.fingerprints) return Forget(s, layer, 0);
  const int64_t same = l.rows.FirstDifferent(in.k, std::min(l.keys, in.kv_len()), *executor);
  if (same < l.keys) Forget(s, layer, same);
}

absl::Status AttentionSession::Impl::RunPlan(int layer, const AttentionPlan& p,
                                             const AttentionInputs& in, const SessionOutputs& out,
                                             bool staged, const FeedbackOutputs& feedback) {
  AttentionPlan biased;
  const AttentionPlan* run = &p;
  if (!out.key_bias.empty()) {
    if (!p.key_bias.empty())
      return absl::UnimplementedError(
          "session: the policy has a key bias of its own beside the host's");
    biased = p;
    biased.key_bias = out.key_bias;
    run = &biased;
  }
  AttentionCounters counted;
  AttendOutputs to;
  to.o = out.o;
  to.lse = out.lse != nullptr                      ? out.lse
           : lse.empty() || p.merge != Merge::kLse ? nullptr
                                                   : lse.data();
  to.counters = &counted;
  to.feedback = feedback;
  if (staged) {
    to.state = {state_m.data(), state_l.data(), state_o.data()};
    if (in.stage > 0) to.resume = to.state;
  }
  const bool step = in.q.rows == 1 && StepWork(p, in.q.dim + out.o.dim) < kShortStep;
  Executor& threads = step ? static_cast<Executor&>(alone) : *executor;
  const auto from = Clock::now();
  SLUICE_RETURN_IF_ERROR(
      attend->Run(*run, {.q = in.q, .k = in.k, .v = in.v, .scale = in.scale, .mask = out.mask},
                  {.workspace = attend_workspace.workspace(), .executor = &threads}, to));
  const double seconds = Since(from);
  Measured& m = measured[layer];
  m.attend_s += seconds;
  if (in.stage > 0) counted.causal_pairs = 0;  // counted in the first stage
  m.counters.Add(counted);
  if (see) see(layer, *run, in, seconds);
  return absl::OkStatus();
}

absl::Status AttentionSession::Impl::Observe(Sequence& s, int layer, const AttentionRouter& serving,
                                             const AttentionInputs& in) {
  const uint32_t wants = serving.traits().feedback;
  if (wants == 0) return absl::OkStatus();
  const AttentionFeedback f = {.q_begin = in.q_begin,
                               .q_count = in.q.rows,
                               .kv_len = in.kv_len(),
                               .layer = layer,
                               .heads = static_cast<int32_t>(in.q.heads),
                               .kv_heads = static_cast<int32_t>(in.k.heads),
                               .key_mass = (wants & kKeyMass) != 0 ? key_mass.data() : nullptr,
                               .head_norm = (wants & kHeadNorm) != 0 ? head_norm.data() : nullptr,
                               .row_max = (wants & kRowMax) != 0 ? row_max.data() : nullptr,
                               .lse = (wants & kLogSumExp) != 0 ? lse.data() : nullptr};
  RouterState state = StateOf(s, layer);
  return router->Observe(*plan, f, state);
}

absl::StatusOr<std::unique_ptr<AttentionSession>> AttentionSession::Create(
    const SessionOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  SLUICE_RETURN_IF_ERROR(impl->Prepare());
  return std::unique_ptr<AttentionSession>(new AttentionSession(std::move(impl)));
}
AttentionSession::AttentionSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionSession::~AttentionSession() = default;

absl::Status AttentionSession::Run(int named, const AttentionInputs& given,
                                   const SessionOutputs& out, int64_t sequence) {
  Impl& s = *impl_;
  SLUICE_ASSIGN_OR_RETURN(const int layer, s.PlaceOf(named));
  if (given.q.rows == 0) return absl::OkStatus();
  AttentionInputs in = given;
  in.layer = named;
  SLUICE_ASSIGN_OR_RETURN(Impl::Sequence * seq, s.Checked(layer, in, sequence));

  const AttentionRouter& serving = s.router->Serving(named, std::max(in.kv_len(), in.prompt_end));
  const int stages = serving.traits().stages;
  const bool step = in.q.rows == 1 && in.kv_len() <= kShortPlan;
  const RunContext ctx = {.workspace = s.plan_workspace.workspace(),
                          .executor = step ? static_cast<Executor*>(&s.alone) : s.executor,
                          .plans = seq};
  const uint32_t wants = serving.traits().feedback;
  for (in.stage = 0; in.stage < stages; ++in.stage) {
    if (in.stage > 0) in.attended_lse = {s.lse.data(), in.q.rows, in.q.heads, in.q.heads};
    RouterState state = s.StateOf(*seq, layer);
    const auto from = Clock::now();
    SLUICE_RETURN_IF_ERROR(s.router->Run(*s.plan, in, state, ctx, *s.storage));
    s.measured[layer].plan_s += Since(from);
    seq->layers[layer].keys = state.keys;

    FeedbackOutputs feedback;
    if (in.stage + 1 == stages) {
      feedback.key_mass = (wants & kKeyMass) != 0 ? s.key_mass.data() : nullptr;
      feedback.head_norm = (wants & kHeadNorm) != 0 ? s.head_norm.data() : nullptr;
      feedback.row_max = (wants & kRowMax) != 0 ? s.row_max.data() : nullptr;
    }
    SLUICE_RETURN_IF_ERROR(s.RunPlan(layer, s.storage->plan(), in, out, stages > 1, feedback));
  }
  if (s.fingerprints()) seq->layers[layer].rows.Append(in.k, in.kv_len());
  return s.Observe(*seq, layer, serving, in);
}

absl::Status AttentionSession::Attend(int layer, const AttentionPlan& plan,
                                      const AttentionInputs& in, const SessionOutputs& out) {
  SLUICE_ASSIGN_OR_RETURN(const int place, impl_->PlaceOf(layer));
  return impl_->RunPlan(place, plan, in, out, false, {});
}

void AttentionSession::Truncate(int64_t tokens, int64_t sequence) {
  const auto known = impl_->sequences.find(sequence);
  if (known == impl_->sequences.end()) return;
  for (int layer = 0; layer <= impl_->options.layers; ++layer) {
    if (known->second.layers[layer].made) impl_->Forget(known->second, layer, tokens);
  }
  if (tokens > 0) return;
  for (Impl::Layer& l : known->second.layers) {
    if (l.made) l.state.Clear();
    l.keys = 0;
  }
  known->second.shared.Clear();
}
void AttentionSession::Unknown(int layer, int64_t sequence) {
  const auto known = impl_->sequences.find(sequence);
  if (known == impl_->sequences.end() || layer < -1 || layer >= impl_->options.layers) return;
  known->second.layers[layer < 0 ? impl_->options.layers : layer].unknown = true;
}
int64_t AttentionSession::known_keys(int layer, int64_t sequence) const {
  const auto known = impl_->sequences.find(sequence);
  if (known == impl_->sequences.end() || layer < 0 || layer >= impl_->options.layers) return 0;
  return known->second.layers[layer].keys;
}
absl::StatusOr<int64_t> AttentionSession::KeysThatStay(int named, const AttentionInputs& in,
                                                       int64_t sequence) {
  SLUICE_ASSIGN_OR_RETURN(const int layer, impl_->PlaceOf(named));
  SLUICE_ASSIGN_OR_RETURN(const Impl::Sequence* s, impl_->Checked(layer, in, sequence));
  return impl_->remembers() ? s->layers[layer].keys : 0;
}
const AttentionRouter& AttentionSession::router() const { return *impl_->router; }
const AttentionPlanInfo& AttentionSession::info() const { return impl_->plan->info(); }
const SessionOptions& AttentionSession::options() const { return impl_->options; }
Executor& AttentionSession::executor() const { return *impl_->executor; }
const AttentionCounters& AttentionSession::counters(int layer) const {
  return impl_->At(layer).counters;
}
double AttentionSession::plan_seconds(int layer) const { return impl_->At(layer).plan_s; }
double AttentionSession::attend_seconds(int layer) const { return impl_->At(layer).attend_s; }
void AttentionSession::ResetCounters() {
  std::fill(impl_->measured.begin(), impl_->measured.end(), Impl::Measured{});
}
void AttentionSession::OnPlan(
    std::function<void(int, const AttentionPlan&, const AttentionInputs&, double)> see) {
  impl_->see = std::move(see);
}
SLUICE_END_NAMESPACE
