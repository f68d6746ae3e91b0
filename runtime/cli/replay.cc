#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/policies/experiment/bootstrap.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/report/report.h"
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
  const double t =
      z + (z * z * z + z) / (4 * f) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * f * f);
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
    const OutcomeLog::Row& r = log.rows[run.row[i]];
    std::fprintf(f, "\n%zu,0,%d,%.6f,%.9g", i, run.agent[i], run.utility[i], run.propensity[i]);
    for (size_t t = 0; t < log.tasks.size(); ++t)
      std::fprintf(f, ",%.4f",
                   r.intent.empty() ? (r.task == static_cast<int>(t) ? 1.0 : 0.0) : r.intent[t]);
  }
  std::fprintf(f, "\n");
  return std::fclose(f) == 0 ? absl::OkStatus()
                             : absl::UnavailableError(path + ": cannot be written");
}
int Run(const std::string& path, std::vector<std::string> policies,
        const std::vector<double>& weights, int seeds, uint64_t first_seed, ReplayOptions o,
        const std::string& curve, const std::string& export_to, const std::string& report_to) {
  const auto log = LoadOutcomeLog(path);
  if (!log.ok()) return Fail(log.status());
  if (policies.empty()) {
    policies = {"random",  "round_robin", "best_single", "cost_threshold", "epsilon_greedy",
                "lin_ucb", "thompson",    "mas_cascade", "amro_s",         kTunedAmroS};
    if (o.warm_up > 0 && !log->rows[0].features.empty())
      policies.insert(policies.begin() + 4, "knn");
  }
  FILE* out = nullptr;
  if (!curve.empty()) {
    out = std::fopen(curve.c_str(), "w");
    if (out == nullptr) return Fail(absl::UnavailableError(curve + ": cannot be written"));
    std::fprintf(out, "cost_weight,policy,decision,regret,half_interval\n");
  }
  Report report;
  report.title =
      absl::StrCat("Agent policies on ", std::filesystem::path(path).filename().string());
  report.notes = absl::StrFormat(
      "%d queries, %d agents, %d tasks; %d decisions, %d seeds from %d, intent %s, warm-up on %.0f "
      "%% of the queries",
      log->rows.size(), log->agents.size(), log->tasks.size(), o.decisions, seeds, first_seed,
      o.predicted_intent ? "predicted" : "given", 100 * o.warm_up);
  std::printf("%s\n%s\n", report.title.c_str(), report.notes.c_str());
  for (double weight : weights) {
    o.cost_weight = weight;
    const Ceilings c = CeilingsOf(*log, weight, o.latency_weight);
    ReportTable table;
    table.title = absl::StrFormat(
        "Cost weight %g: best single %.4f, best of each task %.4f, best of each query %.4f", weight,
        c.best_single, c.task_best, c.oracle);
    table.note =
        "Utility, quality and cost are of the last third, regret of the whole against each task's "
        "best; gains over the "
        "first policy are paired by seed; 95 % intervals. Marked: no other policy has both less "
        "cost and more quality.";
    table.columns = {{"policy", -1}, {"utility", 4},   {"gain", 4},
                     {"quality", 4}, {"USD/query", 6}, {"regret", 1}};
    ReportChart regret_chart{
        absl::StrFormat("Regret, cost weight %g", weight), "decisions", "regret", false, {}};
    ReportChart tradeoff{absl::StrFormat("Quality against cost, cost weight %g", weight),
                         "USD a query",
                         "quality",
                         true,
                         {}};
    ReportHeat chosen{absl::StrFormat("Agents chosen, cost weight %g", weight),
                      "share of the last third's decisions",
                      {},
                      log->agents,
                      {},
                      0,
                      1};
    ReportHeat by_task;
    std::vector<Tradeoff> points;
    std::vector<double> first;  // the first policy's, per seed
    for (const std::string& policy : policies) {
      std::vector<double> utility, quality, cost, regret, gain;
      constexpr int kPoints = 40;
      std::vector<std::vector<double>> share(log->tasks.size(),
                                             std::vector<double>(log->agents.size()));
      std::vector<std::vector<double>> along(kPoints);
      for (int s = 0; s < seeds; ++s) {
        if (isatty(2))
          std::fprintf(stderr, "\r%s, seed %d of %d\033[K", policy.c_str(), s + 1, seeds);
        const auto run = Replay(*log, policy, o, first_seed + static_cast<uint64_t>(s));
        if (!run.ok())
          return Fail(absl::Status(run.status().code(),
                                   absl::StrCat(policy, ": ", run.status().message())));
        if (first.size() < static_cast<size_t>(seeds)) first.push_back(run->LastThird());
        gain.push_back(run->LastThird() - first[s]);  // the same queries in the same order
        if (!export_to.empty() && s == 0 && &policy == &policies[0] && weight == weights[0]) {
          if (const absl::Status status = Export(*log, *run, export_to); !status.ok())
            return Fail(status);
        }
        utility.push_back(run->LastThird());
        quality.push_back(run->quality);
        cost.push_back(run->cost_usd);
        double sum = 0;
        int point = 0;
        for (size_t i = 0; i < run->utility.size(); ++i) {
          if (3 * i >= 2 * run->utility.size()) ++share[log->rows[run->row[i]].task][run->agent[i]];
          sum += run->task_best[i] - run->utility[i];
          if ((i + 1) * kPoints / run->utility.size() > static_cast<size_t>(point))
            along[point++].push_back(sum);
        }
        regret.push_back(sum);
      }
      if (isatty(2)) std::fprintf(stderr, "\r\033[K");
      const Mean u = Interval(utility);
      const Mean g = Interval(gain);
      const Mean q = Interval(quality), usd = Interval(cost), lost = Interval(regret);
      const auto cell = [](const Mean& m) {
        return ReportCell{"", m.mean, m.mean - m.half, m.mean + m.half};
      };
      table.rows.push_back({{policy}, cell(u), cell(g), {"", q.mean}, {"", usd.mean}, cell(lost)});
      points.push_back({usd.mean, q.mean});
      tradeoff.series.push_back(
          {policy, {{usd.mean, q.mean, q.mean - q.half, q.mean + q.half, ""}}, false, false});
      ReportChart::Series line{policy, {}, true, false};
      for (int i = 0; i < kPoints; ++i) {
        const Mean m = Interval(along[i]);
        line.points.push_back({static_cast<double>((i + 1) * o.decisions / kPoints), m.mean,
                               m.mean - m.half, m.mean + m.half, ""});
      }
      regret_chart.series.push_back(std::move(line));
      // Of all tasks together, and for the last policy by task.
      std::vector<double> all(log->agents.size());
      double total = 0;
      for (const auto& task : share) {
        for (size_t i = 0; i < task.size(); ++i) {
          all[i] += task[i];
          total += task[i];
        }
      }
      for (double& x : all) x /= std::max(1.0, total);
      chosen.rows.push_back(policy);
      chosen.values.push_back(std::move(all));
      by_task = {
          absl::StrFormat("Agents chosen by %s for each task, cost weight %g", policy, weight),
          "share of the last third's decisions",
          log->tasks,
          log->agents,
          share,
          0,
          1};
      for (auto& task : by_task.values) {
        const double sum = std::accumulate(task.begin(), task.end(), 0.0);
        for (double& x : task) x = sum > 0 ? x / sum : NAN;
      }
      if (out != nullptr) {
        for (int i = 0; i < kPoints; ++i) {
          const Mean m = Interval(along[i]);
          std::fprintf(out, "%g,\"%s\",%lld,%.3f,%.3f\n", weight, policy.c_str(),
                       static_cast<long long>((i + 1) * o.decisions / kPoints), m.mean, m.half);
        }
      }
    }
    table.marked = ParetoFront(points);
    Report printed;
    printed.title = table.title;
    printed.tables.push_back(table);
    printed.tables[0].title.clear();
    printed.tables[0].note.clear();
    std::printf("\n%s", ReportText(printed).c_str());
    std::fflush(stdout);
    report.tables.push_back(std::move(table));
    report.charts.push_back(std::move(regret_chart));
    report.charts.push_back(std::move(tradeoff));
    report.heats.push_back(std::move(chosen));
    report.heats.push_back(std::move(by_task));
  }
  std::printf("\n%s\n", report.tables.back().note.c_str());
  if (out != nullptr) std::fclose(out);
  if (report_to.empty()) return 0;
  if (const absl::Status status = WriteReport(report, report_to); !status.ok()) return Fail(status);
  std::printf("wrote %s.html, .json, .csv\n", report_to.c_str());
  return 0;
}
}  // namespace

void AddReplay(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand(
      "replay", "Replay an outcome log through policies and say what each would have earned");
  struct Args {
    std::string log, curve, export_to, report;
    std::vector<std::string> policies;
    std::vector<double> weights = {0, 5, 20};
    int seeds = 5;
    uint64_t first_seed = 1;
    ReplayOptions o;
  };
  auto a = std::make_shared<Args>();
  s->add_option("--log", a->log,
                "CSV: id, task, quality:AGENT, cost_usd:AGENT, ... (plain or gzip)")
      ->required();
  s->add_option("--policy", a->policies,
                "as in the server's configuration; default: all built-in ones");
  s->add_option("--cost-weight", a->weights, "utility lost per USD")
      ->delimiter(',')
      ->capture_default_str();
  s->add_option("--latency-weight", a->o.latency_weight, "utility lost per second")
      ->capture_default_str();
  s->add_option("--seeds", a->seeds, "repetitions")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  s->add_option("--first-seed", a->first_seed, "of the first repetition")->capture_default_str();
  s->add_option("--decisions", a->o.decisions, "of one repetition")
      ->capture_default_str()
      ->check(CLI::Range(3, 100000000));
  s->add_option("--warm-up", a->o.warm_up,
                "share of the queries learned from before, with every agent's answer")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.95));
  s->add_option("--prior-ability", a->o.ability,
                "what every agent is thought able to before it was tried")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  s->add_option("--epoch", a->o.epoch, "decisions learned as one batch")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  s->add_flag("--predicted-intent", a->o.predicted_intent,
              "the log's intent columns instead of the task's name");
  s->add_option("--curve", a->curve, "CSV of regret along the way, with 95 % intervals");
  s->add_option("--export", a->export_to,
                "CSV of the first policy's decisions in Open Bandit Pipeline's columns");
  s->add_option(
      "--report", a->report,
      "prefix of an .html, .json and .csv report: regret, quality against cost, who was chosen");
  s->footer(
      "Example: sluice replay --log examples/agents/pool_a.csv.gz --policy thompson --policy "
      "amro_s --seeds 20");
  s->callback([=] {
    exit(Run(a->log, a->policies, a->weights, a->seeds, a->first_seed, a->o, a->curve, a->export_to,
             a->report));
  });
}
}  // namespace cli
SLUICE_END_NAMESPACE
