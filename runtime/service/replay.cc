#include "sluice/runtime/service/replay.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/method_keys.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/service/affinity.h"
#include "sluice/runtime/store/ledger.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Of an answer that is told; what has no weight may be unknown.
double Utility(const OutcomeLog::Row& r, size_t agent, double cost_weight, double latency_weight) {
  return r.quality[agent] - cost_weight * ZeroIfUnknown(r.cost_usd[agent]) -
         latency_weight * ZeroIfUnknown(r.latency_s[agent]);
}
// Each task's best agent on average.
std::vector<size_t> TaskBest(const OutcomeLog& log, double cost_weight, double latency_weight) {
  std::vector<std::vector<double>> sum(log.tasks.size(), std::vector<double>(log.agents.size()));
  for (const OutcomeLog::Row& r : log.rows) {
    for (size_t a = 0; a < log.agents.size(); ++a)
      sum[r.task][a] += Utility(r, a, cost_weight, latency_weight);
  }
  std::vector<size_t> best;
  best.reserve(sum.size());
  for (const auto& s : sum)
    best.push_back(static_cast<size_t>(std::max_element(s.begin(), s.end()) - s.begin()));
  return best;
}
// The warm-up's outcomes, as knn wants them.
class Stored final : public WeightSource {
 public:
  Stored(const OutcomeLog& log, std::vector<size_t> rows) : log_(log), rows_(std::move(rows)) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    if (absl::EndsWith(key, ".rows")) return static_cast<int64_t>(rows_.size());
    if (absl::EndsWith(key, ".width")) return static_cast<int64_t>(log_.rows[0].features.size());
    return static_cast<int64_t>(log_.agents.size());
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    std::vector<float> out;
    for (size_t i : rows_) {
      const OutcomeLog::Row& r = log_.rows[i];
      if (name == "knn.features") out.insert(out.end(), r.features.begin(), r.features.end());
      const auto& column = name == "knn.quality" ? r.quality
                           : name == "knn.cost"  ? r.cost_usd
                                                 : r.latency_s;
      if (name == "knn.features") continue;
      for (double x : column) out.push_back(static_cast<float>(ZeroIfUnknown(x)));
    }
    return out;
  }

 private:
  const OutcomeLog& log_;
  std::vector<size_t> rows_;
};

// Rows of the log in the seed's order: those learned from before, and those replayed.
struct Split {
  std::vector<size_t> warm, pool;
};
absl::StatusOr<Split> SplitRows(const OutcomeLog& log, const ReplayOptions& o, uint64_t seed) {
  std::vector<size_t> order(log.rows.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size() - 1; i > 0; --i)
    std::swap(order[i], order[RandomBits({seed, 7, i, 0, 0}) % (i + 1)]);
  const auto middle =
      order.begin() + static_cast<std::ptrdiff_t>(o.warm_up * static_cast<double>(order.size()));
  if (middle == order.end())
    return absl::InvalidArgumentError(
        absl::StrCat("warm_up=", o.warm_up, " leaves no query to replay"));
  return Split{{order.begin(), middle}, {middle, order.end()}};
}

std::shared_ptr<const AgentGraph> GraphOf(const OutcomeLog& log, const ReplayOptions& o,
                                          const std::vector<size_t>& warm) {
  auto graph = log.Graph(o.ability);
  if (!o.ability_from_warm_up) return graph;
  for (size_t a = 0; a < log.agents.size(); ++a) {
    std::vector<MeanOfTold> quality(log.tasks.size());
    for (size_t row : warm) quality[log.rows[row].task].Add(log.rows[row].quality[a]);
    for (size_t t = 0; t < quality.size(); ++t) graph->stages[0][a].ability[t] = quality[t].value();
  }
  return graph;
}

// The objective's weights and the seed go to policies that know them and do not set them.
absl::StatusOr<std::string> SpecOf(const std::string& policy, const OutcomeLog& log,
                                   const ReplayOptions& o, uint64_t seed,
                                   const FactoryMap<AgentRouter>& agents) {
  const auto factory = agents.Find(policy.substr(0, policy.find(':')));
  if (!factory.ok()) return policy;  // whoever makes it says so
  std::vector<AddedKey> keys = {{"cost_weight", absl::StrCat(o.cost_weight), true},
                                {"latency_weight", absl::StrCat(o.latency_weight), true},
                                {"seed", absl::StrCat(seed), true}};
  if (!log.rows[0].features.empty() && absl::StartsWith(policy, "lin_ucb"))
    keys.push_back({"width", absl::StrCat(log.rows[0].features.size()), true});
  return WithKeys(policy, (*factory)->Describe(), keys);
}

// A policy that decides queries of the log and learns how they ended.
class Learning {
 public:
  Learning(const AgentRouter& router, const AgentRouter::Plan& plan, const OutcomeLog& log,
           const ReplayOptions& o)
      : router_(router), plan_(plan), log_(log), o_(o), ledger_(router, plan, 8) {
    one_hot_.resize(log.tasks.size());
  }
  // Every agent's answer to every one of these queries.
  void WarmUp(const std::vector<size_t>& rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      for (size_t a = 0; a < log_.agents.size(); ++a) {
        Learn(log_.rows[rows[i]], static_cast<int32_t>(a),
              1.0 / static_cast<double>(log_.agents.size()));
      }
      if (static_cast<int64_t>(i) % o_.epoch == 0) ++epoch_;
    }
  }
  absl::StatusOr<AgentDecision> Decide(const OutcomeLog::Row& r, int64_t i) {
    AgentRequest q;
    q.id = static_cast<uint64_t>(i) + 1;
    q.intent = IntentOf(r);
    q.features = r.features;
    AgentDecision d;
    SLUICE_RETURN_IF_ERROR(router_.Run(plan_, ledger_.State(), q, d, nullptr));
    return d;
  }
  // What moving from this agent would gain, by what was learned.
  absl::StatusOr<double> Gain(const OutcomeLog::Row& r, int32_t agent) {
    AgentRequest q;
    q.intent = IntentOf(r);
    AgentDecision d;
    AgentTrace trace;
    SLUICE_RETURN_IF_ERROR(router_.Run(plan_, ledger_.State(), q, d, &trace));
    return GainOfMoving(trace, absl::MakeConstSpan(&agent, 1));
  }
  void NextEpochAt(int64_t i) { epoch_ += i % o_.epoch == 0; }
  void Learn(const OutcomeLog::Row& r, int32_t agent, double propensity) {
    AgentOutcome outcome;
    const auto a = static_cast<size_t>(agent);
    outcome.intent = IntentOf(r);
    outcome.features = r.features;
    outcome.path = absl::MakeConstSpan(&agent, 1);
    outcome.propensity = propensity;
    outcome.quality = r.quality[a];
    outcome.accepted = r.quality[a] >= o_.gate;
    outcome.cost_usd = ZeroIfUnknown(r.cost_usd[a]);
    outcome.latency_s = ZeroIfUnknown(r.latency_s[a]);
    deltas_.clear();
    router_.Observe(plan_, outcome, deltas_);
    ledger_.Add(epoch_, deltas_);
  }

 private:
  absl::Span<const double> IntentOf(const OutcomeLog::Row& r) {
    if (o_.predicted_intent && !r.intent.empty()) return r.intent;
    std::fill(one_hot_.begin(), one_hot_.end(), 0.0);
    one_hot_[r.task] = 1;
    return one_hot_;
  }

  const AgentRouter& router_;
  const AgentRouter::Plan& plan_;
  const OutcomeLog& log_;
  const ReplayOptions& o_;
  Ledger ledger_;
  uint64_t epoch_ = 0;
  std::vector<double> one_hot_;
  std::vector<SumDelta> deltas_;
};

// The pool in another order: sessions of one task each, one after the other.
void Shuffle(const OutcomeLog& log, const ReplayOptions& o, uint64_t seed, uint64_t round,
             std::vector<size_t>& pool) {
  for (size_t k = pool.size() - 1; k > 0; --k)
    std::swap(pool[k], pool[RandomBits({seed, 9, k, round, 0}) % (k + 1)]);
  if (o.session <= 1) return;
  std::vector<std::vector<size_t>> sessions;
  std::vector<int64_t> open(log.tasks.size(), -1);
  for (size_t row : pool) {
    int64_t& at = open[static_cast<size_t>(log.rows[row].task)];
    if (at < 0 || std::ssize(sessions[static_cast<size_t>(at)]) >= o.session) {
      at = std::ssize(sessions);
      sessions.emplace_back();
    }
    sessions[static_cast<size_t>(at)].push_back(row);
  }
  pool.clear();
  for (const std::vector<size_t>& s : sessions) pool.insert(pool.end(), s.begin(), s.end());
}

// Decides the pool's queries over and over, each time in another order. `worth` learns beside the
// policy what a session's agent promises.
absl::StatusOr<ReplayRun> DecideAll(const OutcomeLog& log, const ReplayOptions& o, uint64_t seed,
                                    std::vector<size_t> pool, Learning& policy, Learning& worth) {
  const std::vector<size_t> task_best = TaskBest(log, o.cost_weight, o.latency_weight);
  ReplayRun run;
  MeanOfTold cost;
  MeanOfTold latency;
  int64_t in_session = 0;
  int task = -1;
  double followers = 0;
  double moved = 0;
  const int64_t last = o.decisions - o.decisions / 3;
  for (int64_t i = 0; i < o.decisions; ++i) {
    const size_t at = static_cast<size_t>(i) % pool.size();
    if (at == 0) {
      Shuffle(log, o, seed, static_cast<uint64_t>(i), pool);
      in_session = 0;
    }
    const OutcomeLog::Row& r = log.rows[pool[at]];
    const bool follows = in_session > 0 && in_session < o.session && r.task == task;
    in_session = follows ? in_session + 1 : 1;
    task = r.task;
    bool kept = false;
    AgentDecision d;
    if (follows && o.affinity_price) {
      SLUICE_ASSIGN_OR_RETURN(const double gain, worth.Gain(r, run.agent.back()));
      kept = IsKept(gain, *o.affinity_price);
    }
    if (kept) {
      d.path[0] = run.agent.back();
    } else {
      SLUICE_ASSIGN_OR_RETURN(d, policy.Decide(r, i));
    }
    followers += follows;
    moved += follows && d.path[0] != run.agent.back();
    for (Learning* learner : {&policy, &worth}) {
      if (learner == &worth && !o.affinity_price) continue;
      learner->NextEpochAt(i);
      learner->Learn(r, d.path[0], d.propensity);
    }

    const auto a = static_cast<size_t>(d.path[0]);
    run.row.push_back(static_cast<int32_t>(pool[at]));
    run.agent.push_back(d.path[0]);
    run.propensity.push_back(d.propensity);
    run.utility.push_back(static_cast<float>(Utility(r, a, o.cost_weight, o.latency_weight)));
    run.task_best.push_back(
        static_cast<float>(Utility(r, task_best[r.task], o.cost_weight, o.latency_weight)));
    if (i >= last) {
      const double n = static_cast<double>(o.decisions - last);
      run.quality += r.quality[a] / n;
      cost.Add(r.cost_usd[a]);
      latency.Add(r.latency_s[a]);
    }
  }
  run.cost_usd = cost.value();
  run.latency_s = latency.value();
  run.moved = followers > 0 ? moved / followers : 0;
  return run;
}

// Mean utility of what the policy would choose for each query.
absl::StatusOr<double> AskAll(const OutcomeLog& log, const ReplayOptions& o,
                              const std::vector<size_t>& pool, Learning& policy) {
  double sum = 0;
  for (size_t i = 0; i < pool.size(); ++i) {
    const OutcomeLog::Row& r = log.rows[pool[i]];
    SLUICE_ASSIGN_OR_RETURN(const AgentDecision d,
                            policy.Decide(r, o.decisions + static_cast<int64_t>(i)));
    sum += Utility(r, static_cast<size_t>(d.path[0]), o.cost_weight, o.latency_weight);
  }
  return sum / static_cast<double>(pool.size());
}

absl::Status CheckComplete(const OutcomeLog& log, const ReplayOptions& o) {
  const OutcomeLog::Needs needs = {.cost = o.cost_weight != 0, .latency = o.latency_weight != 0};
  const auto untold = std::count_if(log.rows.begin(), log.rows.end(),
                                    [&](const OutcomeLog::Row& r) { return !r.Tells(needs); });
  if (untold > 0 || log.rows.empty())
    return absl::InvalidArgumentError(
        absl::StrCat(untold, " of ", log.rows.size(),
                     " rows do not tell every agent's answer: replay OutcomeLog::Complete"));
  return absl::OkStatus();
}
}  // namespace

double ReplayRun::LastThird() const {
  double sum = 0;
  const size_t from = utility.size() - utility.size() / 3;
  for (size_t i = from; i < utility.size(); ++i) sum += utility[i];
  return sum / static_cast<double>(utility.size() - from);
}

absl::StatusOr<ReplayRun> Replay(const OutcomeLog& log, const std::string& policy,
                                 const ReplayOptions& o, uint64_t seed) {
  SLUICE_RETURN_IF_ERROR(CheckComplete(log, o));
  SLUICE_ASSIGN_OR_RETURN(Split rows, SplitRows(log, o, seed));
  if (o.ability_from_warm_up && rows.warm.empty())
    return absl::InvalidArgumentError("abilities of the warm-up: there is none, warm_up=0");
  const FactoryMap<AgentRouter>& agents = InstalledMethods().registry.agents;
  const Stored stored(log, rows.warm);
  const bool has_stored = !rows.warm.empty() && !log.rows[0].features.empty();
  SLUICE_ASSIGN_OR_RETURN(const std::string spec, SpecOf(policy, log, o, seed, agents));
  const auto router = agents.Create(spec, has_stored ? &stored : nullptr);
  if (!router.ok()) return WithRefused(router.status());
  const auto graph = GraphOf(log, o, rows.warm);
  SLUICE_ASSIGN_OR_RETURN(const auto plan, (*router)->MakePlan(graph));

  SLUICE_ASSIGN_OR_RETURN(const auto promises,
                          agents.Create(WorthSpec(o.cost_weight, o.latency_weight), nullptr));
  SLUICE_ASSIGN_OR_RETURN(const auto worth_plan, promises->MakePlan(graph));
  Learning learning(**router, *plan, log, o);
  Learning worth(*promises, *worth_plan, log, o);
  learning.WarmUp(rows.warm);
  worth.WarmUp(rows.warm);
  SLUICE_ASSIGN_OR_RETURN(ReplayRun run, DecideAll(log, o, seed, rows.pool, learning, worth));
  if (o.ask_afterwards) {
    SLUICE_ASSIGN_OR_RETURN(run.afterwards, AskAll(log, o, rows.pool, learning));
  }
  return run;
}

Ceilings CeilingsOf(const OutcomeLog& log, double cost_weight, double latency_weight) {
  const std::vector<size_t> task_best = TaskBest(log, cost_weight, latency_weight);
  std::vector<double> single(log.agents.size());
  Ceilings c{0, 0, 0};
  const double n = static_cast<double>(log.rows.size());
  for (const OutcomeLog::Row& r : log.rows) {
    double top = -INFINITY;
    for (size_t a = 0; a < single.size(); ++a) {
      const double u = Utility(r, a, cost_weight, latency_weight);
      single[a] += u / n;
      top = std::max(top, u);
    }
    c.oracle += top / n;
    c.task_best += Utility(r, task_best[r.task], cost_weight, latency_weight) / n;
  }
  c.best_single = *std::max_element(single.begin(), single.end());
  return c;
}
SLUICE_END_NAMESPACE
