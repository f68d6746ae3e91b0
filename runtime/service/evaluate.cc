#include "sluice/runtime/service/evaluate.h"

#include <algorithm>
#include <cmath>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/earlier_teams.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/v1/config.pb.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr uint64_t kLabelled = uint64_t{1} << 63;  // of ids that were warmed up

absl::StatusOr<v1::ServerConfig> StoredConfig(Store& store, uint64_t fingerprint) {
  const std::string key = TeamKey(fingerprint);
  const absl::StatusOr<StoredSnapshot> kept = store.LoadSnapshot(key);
  if (absl::IsNotFound(kept.status()))
    return absl::NotFoundError(absl::StrCat("the state has no ", key,
                                            ", the graph of its newest outcome: a server older "
                                            "than this program wrote it"));
  SLUICE_RETURN_IF_ERROR(kept.status());
  v1::ServerConfig config;
  if (!config.ParseFromString(kept->bytes))
    return absl::DataLossError(absl::StrCat(key, " is no configuration"));
  return config;
}

// What of an outcome stands against judging by it.
enum class Fate : uint8_t { kJudged, kOtherGraph, kLabelled, kKept, kUngraded, kUnfit, kOutside };
bool FitsGraph(const DecisionRecord& d, const AgentGraph& g) {
  if (d.path.size() != g.stages.size() || d.intent.size() != g.tasks.size()) return false;
  for (int s = 0; s < g.num_stages(); ++s) {
    const int64_t j = d.path[static_cast<size_t>(s)] - g.first_agent(s);
    if (j < 0 || j >= g.stage_size(s)) return false;
  }
  const auto agents = static_cast<int32_t>(g.num_agents());
  const auto known = [&](int32_t a) { return a >= 0 && a < agents; };
  return std::all_of(d.blocked.begin(), d.blocked.end(), known);
}
Fate FateOf(const OutcomeRecord& o, uint64_t graph, const AgentGraph& g,
            const OpeOptions& options) {
  const DecisionRecord& d = o.decision;
  if (d.graph != graph) return Fate::kOtherGraph;
  if (!FitsGraph(d, g)) return Fate::kUnfit;
  if ((d.id & kLabelled) != 0) return Fate::kLabelled;
  if (d.kept) return Fate::kKept;
  if (!o.graded) return Fate::kUngraded;
  if (!(d.propensity > 0)) return Fate::kUnfit;
  if (d.unix_ms < options.since_ms) return Fate::kOutside;
  if (options.until_ms != 0 && d.unix_ms >= options.until_ms) return Fate::kOutside;
  return Fate::kJudged;
}
void Count(Fate fate, OpeCounts& c) {
  switch (fate) {
    case Fate::kJudged:
      ++c.judged;
      break;
    case Fate::kOtherGraph:
      ++c.other_graph;
      break;
    case Fate::kLabelled:
      ++c.labelled;
      break;
    case Fate::kKept:
      ++c.kept;
      break;
    case Fate::kUngraded:
      ++c.ungraded;
      break;
    case Fate::kUnfit:
      ++c.unfit;
      break;
    case Fate::kOutside:
      ++c.outside;
      break;
  }
}

// Mean reward of each task and agent of the last stage, shrunk to the mean of all.
class RewardModel {
 public:
  RewardModel(size_t tasks, size_t agents, double prior)
      : agents_(agents), prior_(prior), count_(tasks * agents), sum_(tasks * agents) {}
  double Of(absl::Span<const double> intent, size_t agent) const {
    const double overall = seen_ > 0 ? total_ / seen_ : 0;
    double mean = 0;
    for (size_t t = 0; t < intent.size(); ++t) {
      const size_t cell = t * agents_ + agent;
      mean += intent[t] * (sum_[cell] + prior_ * overall) / (count_[cell] + prior_);
    }
    return mean;
  }
  void Learn(absl::Span<const double> intent, size_t agent, double reward) {
    seen_ += 1;
    total_ += reward;
    for (size_t t = 0; t < intent.size(); ++t) {
      count_[t * agents_ + agent] += intent[t];
      sum_[t * agents_ + agent] += intent[t] * reward;
    }
  }

 private:
  size_t agents_;
  double prior_;
  double seen_ = 0;
  double total_ = 0;
  std::vector<double> count_, sum_;
};

// One policy, learning beside the log.
class Judged {
 public:
  static absl::StatusOr<std::unique_ptr<Judged>> Create(const std::string& policy,
                                                        const v1::ServerConfig& config,
                                                        std::shared_ptr<const AgentGraph> graph,
                                                        const OpeOptions& o) {
    std::string spec = policy;
    std::unique_ptr<Gguf> weights;
    for (const v1::PolicyConfig& p : config.policy()) {
      if (p.name() != policy) continue;
      spec = p.spec();
      if (p.weights().empty()) break;
      SLUICE_ASSIGN_OR_RETURN(Gguf file, Gguf::Open(p.weights()));
      weights = std::make_unique<Gguf>(std::move(file));
      break;
    }
    const auto named = [&](const absl::Status& status) {
      return absl::Status(status.code(), absl::StrCat("policy '", policy, "': ", status.message()));
    };
    auto router = InstalledMethods().registry.agents.Create(spec, weights.get());
    if (!router.ok()) return WithRefused(named(router.status()));
    auto plan = (*router)->MakePlan(graph);
    if (!plan.ok()) return named(plan.status());
    return std::unique_ptr<Judged>(
        new Judged(policy, *std::move(router), *std::move(plan), std::move(graph), o));
  }

  // The logged path's probability and the model's prediction for this policy, as it is now.
  absl::StatusOr<LoggedDecision> Judge(const OutcomeRecord& o, const RewardModel& model,
                                       double reward) {
    const DecisionRecord& d = o.decision;
    SetRequest(d);
    const int last = graph_->num_stages() - 1;
    const int64_t first = graph_->first_agent(last);
    LoggedDecision judged;
    judged.reward = reward;
    judged.propensity = d.propensity;
    judged.model = model.Of(d.intent, static_cast<size_t>(d.path.back() - first));
    SLUICE_ASSIGN_OR_RETURN(judged.target, Follow(d.path));
    SLUICE_RETURN_IF_ERROR(LastStage());
    double sum = 0;
    for (size_t j = 0; j < reach_.size(); ++j) {
      sum += reach_[j];
      if (reach_[j] > 0) judged.model_target += reach_[j] * model.Of(d.intent, j);
    }
    if (!(std::abs(sum - 1) < 1e-3))
      return absl::InternalError(absl::StrCat(
          "policy '", name_, "': its probabilities of the last stage sum to ", sum, ", wanted 1"));
    return judged;
  }
  void Learn(const OutcomeRecord& o) {
    deltas_.clear();
    router_->Observe(*plan_, o.view(o.shares()), deltas_);
    ledger_.Add(o.decision.epoch, deltas_);
  }
  const std::string& name() const { return name_; }

 private:
  Judged(std::string name, std::unique_ptr<const AgentRouter> router,
         std::unique_ptr<const AgentRouter::Plan> plan, std::shared_ptr<const AgentGraph> graph,
         const OpeOptions& o)
      : name_(std::move(name)),
        router_(std::move(router)),
        plan_(std::move(plan)),
        graph_(std::move(graph)),
        ledger_(*router_, *plan_, o.window) {
    ask_.explore = o.explore;
  }
  void SetRequest(const DecisionRecord& d) {
    ask_.id = d.id;
    ask_.intent = d.intent;
    ask_.features = d.features;
    ask_.blocked = {};
    if (d.blocked.empty()) return;
    blocked_.assign(static_cast<size_t>(graph_->num_agents()), Block::kNone);
    for (int32_t a : d.blocked) blocked_[static_cast<size_t>(a)] = Block::kCaller;
    ask_.blocked = blocked_;
  }
  // Probability of a path; leaves every candidate's in trace_.
  absl::StatusOr<double> Follow(absl::Span<const int32_t> path) {
    ask_.follow = path;
    trace_.clear();
    AgentDecision decision;
    const absl::Status status = router_->Run(*plan_, ledger_.State(), ask_, decision, &trace_);
    if (!status.ok())
      return absl::Status(status.code(), absl::StrCat("policy '", name_, "': ", status.message()));
    if (!std::equal(path.begin(), path.end(), decision.path.begin()))
      return absl::UnimplementedError(
          absl::StrCat("policy '", name_, "' cannot say the probability of a given path"));
    return decision.propensity;
  }
  // How probable each agent of the last stage is, into reach_: a stage's probabilities depend on
  // the agent before and on no other, so one walk by each agent tells all. trace_ holds a walk.
  absl::Status LastStage() {
    Reach(0, 1, true);
    for (int s = 1; s < graph_->num_stages(); ++s) {
      const std::vector<double> before = reach_;
      std::vector<int32_t> path;
      for (int k = 0; k < graph_->num_stages(); ++k)
        path.push_back(static_cast<int32_t>(graph_->first_agent(k)));
      const int32_t first = path[static_cast<size_t>(s) - 1];
      for (size_t i = 0; i < before.size(); ++i) {
        if (before[i] > 0) {
          path[static_cast<size_t>(s) - 1] = first + static_cast<int32_t>(i);
          SLUICE_RETURN_IF_ERROR(Follow(path).status());
        }
        Reach(s, before[i], i == 0);
      }
    }
    return absl::OkStatus();
  }
  // Adds `weight` times what trace_ has of stage s.
  void Reach(int s, double weight, bool anew) {
    if (anew) reach_.assign(static_cast<size_t>(graph_->stage_size(s)), 0.0);
    if (weight == 0) return;
    const int64_t first = graph_->first_agent(s);
    for (const AgentCandidate& c : trace_) {
      if (c.stage == s) reach_[static_cast<size_t>(c.agent - first)] += weight * c.p;
    }
  }

  std::string name_;
  std::unique_ptr<const AgentRouter> router_;
  std::unique_ptr<const AgentRouter::Plan> plan_;
  std::shared_ptr<const AgentGraph> graph_;
  Ledger ledger_;
  AgentRequest ask_;
  AgentTrace trace_;
  std::vector<double> reach_;
  std::vector<Block> blocked_;
  std::vector<SumDelta> deltas_;
};

// Outcomes after `after` up to `newest`, in order; what comes meanwhile is left to another time.
absl::Status ReadOutcomes(Store& store, uint64_t after, uint64_t newest,
                          absl::FunctionRef<absl::Status(const OutcomeRecord&)> take) {
  absl::Status bad;
  SLUICE_RETURN_IF_ERROR(store.Read(after, [&](uint64_t sequence, absl::string_view bytes) {
    if (!bad.ok() || sequence > newest) return;
    const absl::StatusOr<OutcomeRecord> outcome = ParseOutcome(bytes);
    const absl::Status s = outcome.ok() ? take(*outcome) : outcome.status();
    if (!s.ok())
      bad = absl::Status(s.code(), absl::StrCat("outcome ", sequence, ": ", s.message()));
  }));
  return bad;
}

class Evaluation {
 public:
  // `run` has its graph; `found`: outcomes, and how many of them could be judged.
  Evaluation(const OpeOptions& o, uint64_t graph, const OpeCounts& found,
             std::vector<std::unique_ptr<Judged>> policies, OpeRun& run)
      : o_(o),
        graph_(graph),
        outcomes_(found.outcomes),
        skip_(o.last > 0 ? std::max<int64_t>(0, found.judged - o.last) : 0),
        policies_(std::move(policies)),
        run_(run),
        model_(run.graph->tasks.size(), run.graph->stages.back().size(), o.model_prior) {}
  absl::Status Take(const OutcomeRecord& outcome) {
    ++run_.counts.outcomes;
    if (o_.progress && run_.counts.outcomes % 256 == 0)
      o_.progress(run_.counts.outcomes, outcomes_);
    Fate fate = FateOf(outcome, graph_, *run_.graph, o_);
    if (fate == Fate::kJudged && skip_-- > 0) fate = Fate::kOutside;
    Count(fate, run_.counts);
    if (fate == Fate::kOtherGraph || !FitsGraph(outcome.decision, *run_.graph))
      return absl::OkStatus();
    const double reward =
        outcome.quality - o_.cost_weight * outcome.cost_usd - o_.latency_weight * outcome.latency_s;
    if (fate == Fate::kJudged) SLUICE_RETURN_IF_ERROR(Judge(outcome, reward));
    if (!outcome.graded) return absl::OkStatus();
    for (const auto& policy : policies_) policy->Learn(outcome);
    const int64_t first = run_.graph->first_agent(run_.graph->num_stages() - 1);
    model_.Learn(outcome.decision.intent, static_cast<size_t>(outcome.decision.path.back() - first),
                 reward);
    return absl::OkStatus();
  }

 private:
  absl::Status Judge(const OutcomeRecord& outcome, double reward) {
    for (size_t i = 0; i < policies_.size(); ++i) {
      SLUICE_ASSIGN_OR_RETURN(LoggedDecision judged, policies_[i]->Judge(outcome, model_, reward));
      run_.policies[i].log.push_back(judged);
    }
    const int64_t ms = outcome.decision.unix_ms;
    if (run_.counts.judged == 1) run_.first_ms = ms;
    run_.first_ms = std::min(run_.first_ms, ms);
    run_.last_ms = std::max(run_.last_ms, ms);
    if (o_.each) o_.each(*run_.graph, outcome, reward);
    return absl::OkStatus();
  }

  const OpeOptions& o_;
  const uint64_t graph_;
  const int64_t outcomes_;
  int64_t skip_;
  std::vector<std::unique_ptr<Judged>> policies_;
  OpeRun& run_;
  RewardModel model_;
};

absl::Status CheckOptions(const OpeOptions& o) {
  if (o.policies.empty()) return absl::InvalidArgumentError("no policy is given to evaluate");
  for (double x : {o.cost_weight, o.latency_weight}) {
    if (!(x >= 0 && x <= 1e9))
      return absl::OutOfRangeError(
          absl::StrCat("cost_weight and latency_weight must be in [0, 1e9], got ", x));
  }
  if (!(o.explore >= 0 && o.explore <= 1))
    return absl::OutOfRangeError(absl::StrCat("explore: ", o.explore, " is outside [0, 1]"));
  if (o.window < 1 || o.last < 0 || !(o.model_prior > 0))
    return absl::OutOfRangeError(absl::StrCat("window ", o.window, ", last ", o.last,
                                              " and model_prior ", o.model_prior,
                                              " must be at least 1, at least 0 and above 0"));
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<OpeRun> EvaluateStore(Store& store, const OpeOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckOptions(o));
  SLUICE_ASSIGN_OR_RETURN(const uint64_t newest, store.Newest());
  if (newest == 0) return absl::NotFoundError("the state holds no outcomes");
  SLUICE_ASSIGN_OR_RETURN(const uint64_t oldest, store.Oldest());
  const uint64_t before = oldest - 1;
  uint64_t graph = 0;
  SLUICE_RETURN_IF_ERROR(ReadOutcomes(store, newest - 1, newest, [&](const OutcomeRecord& last) {
    graph = last.decision.graph;
    return absl::OkStatus();
  }));
  SLUICE_ASSIGN_OR_RETURN(const v1::ServerConfig config, StoredConfig(store, graph));
  OpeRun run;
  run.graph = GraphOf(config);
  SLUICE_RETURN_IF_ERROR(ValidateGraph(*run.graph));
  std::vector<std::unique_ptr<Judged>> policies;
  for (const std::string& policy : o.policies) {
    SLUICE_ASSIGN_OR_RETURN(auto made, Judged::Create(policy, config, run.graph, o));
    policies.push_back(std::move(made));
    run.policies.push_back({policy, {}});
  }
  OpeCounts found;
  SLUICE_RETURN_IF_ERROR(ReadOutcomes(store, before, newest, [&](const OutcomeRecord& outcome) {
    ++found.outcomes;
    Count(FateOf(outcome, graph, *run.graph, o), found);
    return absl::OkStatus();
  }));
  Evaluation evaluation(o, graph, found, std::move(policies), run);
  SLUICE_RETURN_IF_ERROR(ReadOutcomes(store, before, newest, [&](const OutcomeRecord& outcome) {
    return evaluation.Take(outcome);
  }));
  const OpeCounts& c = run.counts;
  if (c.judged < 2)
    return absl::FailedPreconditionError(absl::StrCat(
        "of ", c.outcomes, " outcomes ", c.judged, " can be judged by, wanted 2 or more: ",
        c.other_graph, " are of other graphs, ", c.labelled, " labelled, ", c.kept,
        " kept by a session, ", c.ungraded, " without a grade, ", c.unfit,
        " without a propensity or of another shape, ", c.outside, " outside what was asked for"));
  return run;
}
SLUICE_END_NAMESPACE
