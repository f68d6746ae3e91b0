#include <unistd.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
struct Mean {
  double mean = 0, half = 0;  // 95 % interval: mean +- half
};
// Student's interval; its quantile by Hill's expansion around the normal one.
Mean Interval(const std::vector<double>& x) {
  const double n = static_cast<double>(x.size());
  Mean m;
  for (double v : x) m.mean += v / n;
  if (n < 2) return m;
  double variance = 0;
  for (double v : x) variance += (v - m.mean) * (v - m.mean) / (n - 1);
  const double z = 1.959964, f = n - 1;
  const double t = z + (z * z * z + z) / (4 * f) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * f * f);
  m.half = t * std::sqrt(variance / n);
  return m;
}
// Open Bandit Pipeline's columns: what off-policy evaluation elsewhere reads.
absl::Status Export(const OutcomeLog& log, const ReplayRun& run, const std::string& path) {
  FILE* f = std::fopen(path.c_str(), "w");
  if (f == nullptr) return absl::UnavailableError(path + ": cannot be written");
  std::fprintf(f, "timestamp,position,action,reward,pscore");
  for (size_t t = 0; t < log.tasks.size(); ++t) std::fprintf(f, ",context_%zu", t);
  for (size_t i = 0; i < run.row.size(); ++i) {
    const OutcomeLog::Row& r = log.rows[static_cast<size_t>(run.row[i])];
    std::fprintf(f, "\n%zu,0,%d,%.6f,%.9g", i, run.agent[i], run.utility[i], run.propensity[i]);
    for (size_t t = 0; t < log.tasks.size(); ++t)
      std::fprintf(f, ",%.4f", r.intent.empty() ? (r.task == static_cast<int>(t) ? 1.0 : 0.0) : r.intent[t]);
  }
  std::fprintf(f, "\n");
  return std::fclose(f) == 0 ? absl::OkStatus() : absl::UnavailableError(path + ": cannot be written");
}
int Run(const std::string& path, std::vector<std::string> policies, const std::vector<double>& weights, int seeds,
        uint64_t first_seed, ReplayOptions o, const std::string& curve, const std::string& export_to) {
  const auto log = LoadOutcomeLog(path);
  if (!log.ok()) return Fail(log.status());
  if (policies.empty()) {
    policies = {"random",  "round_robin", "best_single", "cost_threshold", "epsilon_greedy",
                "lin_ucb", "thompson",    "mas_cascade", "amro_s",         kTunedAmroS};
    if (o.warm_up > 0 && !log->rows[0].features.empty()) policies.insert(policies.begin() + 4, "knn");
  }
  FILE* out = nullptr;
  if (!curve.empty()) {
    out = std::fopen(curve.c_str(), "w");
    if (out == nullptr) return Fail(absl::UnavailableError(curve + ": cannot be written"));
    std::fprintf(out, "cost_weight,policy,decision,regret,half_interval\n");
  }
  std::printf(
      "%zu queries, %zu agents, %zu tasks; %lld decisions, %d seeds from %llu, intent %s, warm-up on %.0f %% of the "
      "queries\n",
      log->rows.size(), log->agents.size(), log->tasks.size(), static_cast<long long>(o.decisions), seeds,
      static_cast<unsigned long long>(first_seed), o.predicted_intent ? "predicted" : "given", 100 * o.warm_up);
  for (double weight : weights) {
    o.cost_weight = weight;
    const Ceilings c = CeilingsOf(*log, weight, o.latency_weight);
    std::printf("\ncost weight %g: best single %.4f, best of each task %.4f, best of each query %.4f\n", weight,
                c.best_single, c.task_best, c.oracle);
    std::printf("%-10s %-8s %-8s %-8s %-9s %-9s %-8s  %s\n", "utility", "+- 95 %", "gain", "+- 95 %", "quality",
                "USD/query", "regret",
                "policy (last third; gain over the first policy, paired by seed; regret of the whole against each "
                "task's best)");
    std::vector<double> first;  // the first policy's, per seed
    for (const std::string& policy : policies) {
      std::vector<double> utility, quality, cost, regret, gain;
      constexpr int kPoints = 40;
      std::vector<std::vector<double>> along(kPoints);
      for (int s = 0; s < seeds; ++s) {
        if (isatty(2)) std::fprintf(stderr, "\r%s, seed %d of %d\033[K", policy.c_str(), s + 1, seeds);
        const auto run = Replay(*log, policy, o, first_seed + static_cast<uint64_t>(s));
        if (!run.ok())
          return Fail(absl::Status(run.status().code(), absl::StrCat(policy, ": ", run.status().message())));
        if (first.size() < static_cast<size_t>(seeds)) first.push_back(run->LastThird());
        gain.push_back(run->LastThird() - first[static_cast<size_t>(s)]);  // the same queries in the same order
        if (!export_to.empty() && s == 0 && &policy == &policies[0] && weight == weights[0]) {
          if (const absl::Status status = Export(*log, *run, export_to); !status.ok()) return Fail(status);
        }
        utility.push_back(run->LastThird()), quality.push_back(run->quality), cost.push_back(run->cost_usd);
        double sum = 0;
        int point = 0;
        for (size_t i = 0; i < run->utility.size(); ++i) {
          sum += run->task_best[i] - run->utility[i];
          if ((i + 1) * kPoints / run->utility.size() > static_cast<size_t>(point))
            along[static_cast<size_t>(point++)].push_back(sum);
        }
        regret.push_back(sum);
      }
      if (isatty(2)) std::fprintf(stderr, "\r\033[K");
      const Mean u = Interval(utility);
      const Mean g = Interval(gain);
      std::printf("%-10.4f %-8.4f %+-8.4f %-8.4f %-9.4f %-9.6f %-8.1f  %s\n", u.mean, u.half, g.mean, g.half,
                  Interval(quality).mean, Interval(cost).mean, Interval(regret).mean, policy.c_str());
      std::fflush(stdout);
      if (out != nullptr) {
        for (int i = 0; i < kPoints; ++i) {
          const Mean m = Interval(along[static_cast<size_t>(i)]);
          std::fprintf(out, "%g,\"%s\",%lld,%.3f,%.3f\n", weight, policy.c_str(),
                       static_cast<long long>((i + 1) * o.decisions / kPoints), m.mean, m.half);
        }
      }
    }
  }
  if (out != nullptr) std::fclose(out);
  return 0;
}
}  // namespace

void AddReplay(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand("replay", "Replay an outcome log through policies and say what each would have earned");
  struct Args {
    std::string log, curve, export_to;
    std::vector<std::string> policies;
    std::vector<double> weights = {0, 5, 20};
    int seeds = 5;
    uint64_t first_seed = 1;
    ReplayOptions o;
  };
  auto a = std::make_shared<Args>();
  s->add_option("--log", a->log, "CSV: id, task, quality:AGENT, cost_usd:AGENT, ... (plain or gzip)")->required();
  s->add_option("--policy", a->policies, "as in the server's configuration; default: all built-in ones");
  s->add_option("--cost-weight", a->weights, "utility lost per USD")->delimiter(',')->capture_default_str();
  s->add_option("--latency-weight", a->o.latency_weight, "utility lost per second")->capture_default_str();
  s->add_option("--seeds", a->seeds, "repetitions")->capture_default_str()->check(CLI::Range(1, 10000));
  s->add_option("--first-seed", a->first_seed, "of the first repetition")->capture_default_str();
  s->add_option("--decisions", a->o.decisions, "of one repetition")
      ->capture_default_str()
      ->check(CLI::Range(3, 100000000));
  s->add_option("--warm-up", a->o.warm_up, "share of the queries learned from before, with every agent's answer")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.95));
  s->add_option("--prior-ability", a->o.ability, "what every agent is thought able to before it was tried")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  s->add_option("--epoch", a->o.epoch, "decisions learned as one batch")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  s->add_flag("--predicted-intent", a->o.predicted_intent, "the log's intent columns instead of the task's name");
  s->add_option("--curve", a->curve, "CSV of regret along the way, with 95 % intervals");
  s->add_option("--export", a->export_to, "CSV of the first policy's decisions in Open Bandit Pipeline's columns");
  s->footer("Example: sluice replay --log examples/agents/pool_a.csv.gz --policy thompson --policy amro_s --seeds 20");
  s->callback(
      [=] { exit(Run(a->log, a->policies, a->weights, a->seeds, a->first_seed, a->o, a->curve, a->export_to)); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
