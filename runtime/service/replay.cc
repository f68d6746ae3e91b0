#include "sluice/runtime/service/replay.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace {
double Utility(const OutcomeLog::Row& r, size_t agent, double cost_weight, double latency_weight) {
  return r.quality[agent] - cost_weight * r.cost_usd[agent] - latency_weight * r.latency_s[agent];
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
      if (name != "knn.features") out.insert(out.end(), column.begin(), column.end());
    }
    return out;
  }

 private:
  const OutcomeLog& log_;
  std::vector<size_t> rows_;
};
}  // namespace

absl::StatusOr<OutcomeLog> LoadOutcomeLog(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  OutcomeLog log;
  enum Kind { kId, kTask, kIntent, kFeature, kQuality, kCost, kLatency };
  std::vector<std::pair<Kind, size_t>> columns;
  std::map<std::string, size_t> agents, intents;
  size_t features = 0, line = 0;
  for (absl::string_view row_text : absl::StrSplit(text, '\n')) {
    ++line;
    row_text = absl::StripSuffix(row_text, "\r");
    if (row_text.empty()) continue;
    const std::vector<absl::string_view> cells = absl::StrSplit(row_text, ',');
    if (columns.empty()) {
      for (absl::string_view name : cells) {
        const std::pair<absl::string_view, absl::string_view> parts =
            absl::StrSplit(name, absl::MaxSplits(':', 1));
        const std::string of(parts.second);
        auto agent = [&] {
          const auto [at, fresh] = agents.emplace(of, agents.size());
          if (fresh) log.agents.push_back(of);
          return at->second;
        };
        if (name == "id")
          columns.emplace_back(kId, 0);
        else if (name == "task")
          columns.emplace_back(kTask, 0);
        else if (parts.first == "intent") {
          const auto [at, fresh] = intents.emplace(of, intents.size());
          if (fresh) log.tasks.push_back(of);
          columns.emplace_back(kIntent, at->second);
        } else if (parts.first == "feature")
          columns.emplace_back(kFeature, features++);
        else if (parts.first == "quality")
          columns.emplace_back(kQuality, agent());
        else if (parts.first == "cost_usd")
          columns.emplace_back(kCost, agent());
        else if (parts.first == "latency_s")
          columns.emplace_back(kLatency, agent());
        else
          return absl::InvalidArgumentError(
              absl::StrCat(path, ": column '", name,
                           "'; known: id, task, intent:TASK, feature:N, quality:AGENT, "
                           "cost_usd:AGENT, latency_s:AGENT"));
      }
      if (agents.empty())
        return absl::InvalidArgumentError(absl::StrCat(path, ": no column quality:AGENT"));
      continue;
    }
    if (cells.size() != columns.size()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", cells.size(),
                                                     " cells, the header has ", columns.size()));
    }
    OutcomeLog::Row r;
    r.intent.resize(intents.size());
    r.features.resize(features);
    for (auto* v : {&r.quality, &r.cost_usd, &r.latency_s}) v->resize(agents.size());
    for (size_t i = 0; i < cells.size(); ++i) {
      const auto [kind, index] = columns[i];
      double x = 0;
      if (kind == kId) {
        r.id = std::string(cells[i]);
        continue;
      }
      if (kind == kTask) {
        auto at = std::find(log.tasks.begin(), log.tasks.end(), cells[i]);
        if (at == log.tasks.end()) at = log.tasks.insert(log.tasks.end(), std::string(cells[i]));
        r.task = static_cast<int>(at - log.tasks.begin());
        continue;
      }
      if (!cells[i].empty() && (!absl::SimpleAtod(cells[i], &x) || !std::isfinite(x))) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", line, ": '", cells[i], "' in column ", i + 1, " is no number"));
      }
      switch (kind) {
        case kIntent:
          r.intent[index] = x;
          break;
        case kFeature:
          r.features[index] = static_cast<float>(x);
          break;
        case kQuality:
          r.quality[index] = x;
          break;
        case kCost:
          r.cost_usd[index] = x;
          break;
        case kLatency:
          r.latency_s[index] = x;
          break;
        default:
          break;
      }
    }
    double sum = 0;
    for (double w : r.intent) sum += w;
    for (double& w : r.intent) w = sum > 0 ? w / sum : 1.0 / static_cast<double>(r.intent.size());
    log.rows.push_back(std::move(r));
  }
  if (log.rows.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no rows"));
  if (!intents.empty() && intents.size() != log.tasks.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", intents.size(), " intent columns for ", log.tasks.size(), " tasks"));
  }
  return log;
}

std::shared_ptr<AgentGraph> OutcomeLog::Graph(double ability) const {
  auto g = std::make_shared<AgentGraph>();
  g->tasks = tasks;
  g->stages.resize(1);
  for (size_t a = 0; a < agents.size(); ++a) {
    Agent agent;
    agent.id = agent.model = agents[a];
    agent.ability.assign(tasks.size(), ability);
    double known = 0;
    for (const Row& r : rows) {
      agent.cost_usd += r.cost_usd[a] / static_cast<double>(rows.size());
      agent.latency_s += r.latency_s[a];
      known += r.latency_s[a] > 0;
    }
    agent.latency_s = known > 0 ? agent.latency_s / known : 0;
    g->stages[0].push_back(std::move(agent));
  }
  return g;
}

double ReplayRun::LastThird() const {
  double sum = 0;
  const size_t from = utility.size() - utility.size() / 3;
  for (size_t i = from; i < utility.size(); ++i) sum += utility[i];
  return sum / static_cast<double>(utility.size() - from);
}

absl::StatusOr<ReplayRun> Replay(const OutcomeLog& log, const std::string& policy,
                                 const ReplayOptions& o, uint64_t seed) {
  std::vector<size_t> order(log.rows.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size() - 1; i > 0; --i)
    std::swap(order[i], order[RandomBits({seed, 7, i, 0, 0}) % (i + 1)]);
  const size_t warm = static_cast<size_t>(o.warm_up * static_cast<double>(order.size()));
  std::vector<size_t> pool(order.begin() + static_cast<std::ptrdiff_t>(warm), order.end());
  if (pool.empty())
    return absl::InvalidArgumentError(
        absl::StrCat("warm_up=", o.warm_up, " leaves no query to replay"));

  // The objective's weights and the seed go to policies that know them and do not set them.
  const std::string name = policy.substr(0, policy.find(':'));
  const Factory<AgentRouter>* factory = nullptr;
  const FactoryMap<AgentRouter>& agents = InstalledMethods().registry.agents;
  for (const auto& [key, f] : agents) {
    if (key == name) factory = f.get();
  }
  std::string spec = policy;
  if (factory != nullptr) {
    const std::string help = factory->Describe();
    auto add = [&](absl::string_view key, auto value) {
      if (!absl::StrContains(help, absl::StrCat("  ", key, "=")) ||
          absl::StrContains(policy, absl::StrCat(key, "=")))
        return;
      absl::StrAppend(&spec, absl::StrContains(spec, ':') ? "," : ":", key, "=", value);
    };
    add("cost_weight", o.cost_weight);
    add("latency_weight", o.latency_weight);
    add("seed", seed);
    if (!log.rows[0].features.empty() && absl::StartsWith(policy, "lin_ucb"))
      add("width", log.rows[0].features.size());
  }
  const Stored stored(
      log, std::vector<size_t>(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(warm)));
  const bool has_stored = warm > 0 && !log.rows[0].features.empty();
  const auto made = agents.Create(spec, has_stored ? &stored : nullptr);
  if (!made.ok()) return WithRefused(made.status());
  const AgentRouter* router = made->get();
  SLUICE_ASSIGN_OR_RETURN(const auto plan, router->MakePlan(log.Graph(o.ability)));
  Ledger ledger(*router, *plan, 8);
  std::vector<SumDelta> deltas;
  std::vector<double> one_hot(log.tasks.size());
  auto intent_of = [&](const OutcomeLog::Row& r) -> absl::Span<const double> {
    if (o.predicted_intent && !r.intent.empty()) return r.intent;
    std::fill(one_hot.begin(), one_hot.end(), 0.0);
    one_hot[r.task] = 1;
    return one_hot;
  };
  uint64_t epoch = 0;
  auto learn = [&](const OutcomeLog::Row& r, int32_t agent, double propensity) {
    AgentOutcome outcome;
    const auto a = static_cast<size_t>(agent);
    outcome.intent = intent_of(r);
    outcome.features = r.features;
    outcome.path = absl::MakeConstSpan(&agent, 1);
    outcome.propensity = propensity;
    outcome.quality = r.quality[a];
    outcome.accepted = r.quality[a] >= o.gate;
    outcome.cost_usd = r.cost_usd[a];
    outcome.latency_s = r.latency_s[a];
    deltas.clear();
    router->Observe(*plan, outcome, deltas);
    ledger.Add(epoch, deltas);
  };
  for (size_t i = 0; i < warm; ++i) {
    for (size_t a = 0; a < log.agents.size(); ++a) {
      learn(log.rows[order[i]], static_cast<int32_t>(a),
            1.0 / static_cast<double>(log.agents.size()));
    }
    if (static_cast<int64_t>(i) % o.epoch == 0) ++epoch;
  }
  const std::vector<size_t> task_best = TaskBest(log, o.cost_weight, o.latency_weight);
  ReplayRun run;
  const int64_t last = o.decisions - o.decisions / 3;
  for (int64_t i = 0; i < o.decisions; ++i) {
    const size_t at = static_cast<size_t>(i) % pool.size();
    if (at == 0) {
      for (size_t k = pool.size() - 1; k > 0; --k)
        std::swap(pool[k], pool[RandomBits({seed, 9, k, static_cast<uint64_t>(i), 0}) % (k + 1)]);
    }
    const OutcomeLog::Row& r = log.rows[pool[at]];
    AgentRequest q;
    q.id = static_cast<uint64_t>(i) + 1;
    q.intent = intent_of(r);
    q.features = r.features;
    AgentDecision d;
    SLUICE_RETURN_IF_ERROR(router->Run(*plan, ledger.State(), q, d, nullptr));
    if (i % o.epoch == 0) ++epoch;
    const auto a = static_cast<size_t>(d.path[0]);
    learn(r, d.path[0], d.propensity);
    run.row.push_back(static_cast<int32_t>(pool[at]));
    run.agent.push_back(d.path[0]);
    run.propensity.push_back(static_cast<float>(d.propensity));
    run.utility.push_back(static_cast<float>(Utility(r, a, o.cost_weight, o.latency_weight)));
    run.task_best.push_back(
        static_cast<float>(Utility(r, task_best[r.task], o.cost_weight, o.latency_weight)));
    if (i >= last) {
      const double n = static_cast<double>(o.decisions - last);
      run.quality += r.quality[a] / n;
      run.cost_usd += r.cost_usd[a] / n;
      run.latency_s += r.latency_s[a] / n;
    }
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
