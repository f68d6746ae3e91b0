#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/api/check.h"
#include "sluice/policies/common/bootstrap.h"
#include "sluice/policies/common/quantile.h"
#include "sluice/runtime/cli/bandit_csv.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/replay.h"
#include "sluice/runtime/service/tune.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
absl::Status Export(const OutcomeLog& log, const ReplayRun& run, const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const auto csv, BanditCsv::Create(path, log.tasks.size()));
  std::vector<double> one_hot(log.tasks.size());
  for (size_t i = 0; i < run.row.size(); ++i) {
    const OutcomeLog::Row& r = log.rows[run.row[i]];
    std::fill(one_hot.begin(), one_hot.end(), 0.0);
    one_hot[r.task] = 1;
    csv->Add(static_cast<int64_t>(i), run.agent[i], run.utility[i], run.propensity[i],
             r.intent.empty() ? one_hot : r.intent);
  }
  return csv->Close();
}
struct ReplayArgs {
  std::string log, curve, export_to, report, runs;
  std::vector<std::string> policies;  // empty: all built-in ones
  std::vector<double> weights;        // empty: 0, 5 and 20 where the log tells costs, else 0
  int seeds = 5;
  uint64_t first_seed = 1;
  std::string queries = kAllQueries;
  int64_t tune = 0;  // trials of every policy; 0: none
  int tune_seeds = 5;
  ReplayOptions o;

  static constexpr char kAllQueries[] = "all";
  static constexpr char kFirstHalf[] = "first-half";
  static constexpr char kSecondHalf[] = "second-half";
};
constexpr int kPoints = 40;  // of a curve of regret

std::vector<std::string> BuiltInPolicies(bool knn) {
  std::vector<std::string> all = {"random",         "round_robin", "best_single", "cost_threshold",
                                  "epsilon_greedy", "lin_ucb",     "thompson",    "mas_cascade",
                                  "amro_s",         kServedPolicy};
  if (knn) all.insert(all.begin() + 4, "knn");
  return all;
}

// What one policy did at one cost weight.
struct PolicyRuns {
  std::vector<double> utility, gain, afterwards, quality, cost, regret, moved;         // a seed
  std::vector<std::vector<double>> along = std::vector<std::vector<double>>(kPoints);  // of seeds
  std::vector<std::vector<double>> share;  // [task][agent] chosen in the last third, all seeds

  void Add(const OutcomeLog& log, const ReplayRun& run, double first_utility) {
    utility.push_back(run.LastThird());
    gain.push_back(run.LastThird() - first_utility);
    afterwards.push_back(run.afterwards);
    quality.push_back(run.quality);
    cost.push_back(run.cost_usd);
    moved.push_back(run.moved);
    double sum = 0;
    int point = 0;
    for (size_t i = 0; i < run.utility.size(); ++i) {
      if (3 * i >= 2 * run.utility.size()) ++share[log.rows[run.row[i]].task][run.agent[i]];
      sum += run.task_best[i] - run.utility[i];
      if ((i + 1) * kPoints / run.utility.size() > static_cast<size_t>(point))
        along[point++].push_back(sum);
    }
    regret.push_back(sum);
  }
};

// All policies at one cost weight, as the report shows them.
struct Section {
  double weight = 0;
  Ceilings known;  // afterwards
  ReportTable table;
  ReportChart regret, tradeoff;
  ReportHeat chosen, by_task;
  std::vector<Tradeoff> points;
  std::vector<double> first;  // utility of the first policy, a seed
};

class ReplayReport {
 public:
  // `to_tune_on` are the queries that ranges in a policy's text are tuned on.
  ReplayReport(const ReplayArgs& a, const OutcomeLog& log, const OutcomeLog& to_tune_on)
      : a_(a), log_(log), to_tune_on_(to_tune_on), policies_(a.policies) {
    if (policies_.empty())
      policies_ = BuiltInPolicies(a.o.warm_up > 0 && !log.rows[0].features.empty());
  }
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(OpenCurve());
    Head();
    for (double weight : a_.weights) SLUICE_RETURN_IF_ERROR(AddWeight(weight));
    std::printf("\n%s\n", report_.tables.back().note.c_str());
    curve_.reset();
    if (!a_.runs.empty()) SLUICE_RETURN_IF_ERROR(WriteRuns());
    if (a_.report.empty()) return absl::OkStatus();
    SLUICE_RETURN_IF_ERROR(WriteReport(report_, a_.report));
    std::printf("wrote %s.html, .json, .csv\n", a_.report.c_str());
    return absl::OkStatus();
  }

 private:
  absl::Status OpenCurve() {
    if (a_.curve.empty()) return absl::OkStatus();
    curve_.reset(std::fopen(a_.curve.c_str(), "w"));
    if (curve_ == nullptr) return absl::UnavailableError(a_.curve + ": cannot be written");
    std::fprintf(curve_.get(), "cost_weight,policy,decision,regret,half_interval\n");
    return absl::OkStatus();
  }
  void Head() {
    report_.title =
        absl::StrCat("Agent policies on ", std::filesystem::path(a_.log).filename().string());
    report_.notes = absl::StrFormat(
        "%d queries, %d agents, %d tasks; %d decisions, %d seeds from %d, intent %s, warm-up on "
        "%.0f %% of the queries",
        log_.rows.size(), log_.agents.size(), log_.tasks.size(), a_.o.decisions, a_.seeds,
        a_.first_seed, a_.o.predicted_intent ? "predicted" : "given", 100 * a_.o.warm_up);
    if (a_.tune > 0)
      absl::StrAppendFormat(&report_.notes,
                            "; ranges tuned on %d other queries, %d settings of each policy, %d "
                            "seeds a setting",
                            to_tune_on_.rows.size(), a_.tune, a_.tune_seeds);
    std::printf("%s\n%s\n", report_.title.c_str(), report_.notes.c_str());
  }

  absl::Status AddWeight(double weight) {
    Section s = NewSection(weight);
    for (const std::string& given : policies_) {
      SLUICE_ASSIGN_OR_RETURN(const std::string policy, TunedPolicy(given, weight));
      SLUICE_ASSIGN_OR_RETURN(const PolicyRuns runs, RunSeeds(policy, s));
      AddPolicy(policy, runs, s);
      if (!a_.runs.empty()) AddRuns(given, policy, runs, s);
      WriteCurve(policy, runs, s);
    }
    s.table.marked = ParetoFront(s.points);
    PrintTable(s.table);
    report_.tables.push_back(std::move(s.table));
    report_.charts.push_back(std::move(s.regret));
    report_.charts.push_back(std::move(s.tradeoff));
    report_.heats.push_back(std::move(s.chosen));
    report_.heats.push_back(std::move(s.by_task));
    return absl::OkStatus();
  }
  // The text with the best number for each of its ranges; itself where it has none.
  absl::StatusOr<std::string> TunedPolicy(const std::string& policy, double weight) const {
    if (!HasRanges(policy)) return policy;
    if (a_.tune == 0)
      return absl::InvalidArgumentError(
          absl::StrCat(policy, " holds a range: --tune says how many settings to try"));
    TuneOptions o;
    o.replay = a_.o;
    o.replay.cost_weight = weight;
    o.trials = a_.tune;
    o.seeds = a_.tune_seeds;
    o.progress = [&](int64_t done) {
      if (isatty(2))
        std::fprintf(stderr, "\r%s, setting %lld of %lld\033[K", policy.c_str(),
                     static_cast<long long>(done), static_cast<long long>(a_.tune));
    };
    SLUICE_ASSIGN_OR_RETURN(const Tuned tuned, Tune(to_tune_on_, policy, o));
    return tuned.policy;
  }
  void AddRuns(const std::string& given, const std::string& policy, const PolicyRuns& runs,
               const Section& s) {
    nlohmann::ordered_json run = {{"cost_weight", s.weight}, {"policy", policy}};
    if (given != policy) run["tuned"] = given;
    const auto rounded = [](const std::vector<double>& x, double scale) {
      std::vector<double> out;
      out.reserve(x.size());
      for (double v : x) out.push_back(std::round(v * scale) / scale);
      return out;
    };
    run["utility"] = rounded(runs.utility, 1e6);
    run["afterwards"] = rounded(runs.afterwards, 1e6);
    run["regret"] = rounded(runs.regret, 1e3);
    runs_["runs"].push_back(std::move(run));
    runs_["known_afterwards"][absl::StrCat(s.weight)] = {{"best_single", s.known.best_single},
                                                         {"task_best", s.known.task_best}};
  }
  absl::Status WriteRuns() const {
    nlohmann::ordered_json all = {{"title", report_.title}, {"notes", report_.notes}};
    all.update(runs_);
    std::string text = all.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    text += '\n';
    return WriteWholeFile(a_.runs, text);
  }
  Section NewSection(double weight) const {
    Section s;
    s.weight = weight;
    s.known = CeilingsOf(log_, weight, a_.o.latency_weight);
    s.table.title = absl::StrFormat(
        "Cost weight %g: best single %.4f, best of each task %.4f, best of each query %.4f", weight,
        s.known.best_single, s.known.task_best, s.known.oracle);
    s.table.note =
        "Utility, quality and cost are of the last third; afterwards: of every query once more, "
        "decided by what was learned, nothing learned; regret of the whole against each task's "
        "best; gains over the first policy are paired by seed; 95 % intervals. Marked: no other "
        "policy has both less cost and more quality.";
    s.table.columns = {{"policy", -1}, {"utility", 4},   {"gain", 4},  {"afterwards", 4},
                       {"quality", 4}, {"USD/query", 6}, {"regret", 1}};
    if (a_.o.session > 1) s.table.columns.push_back({"moved", 3});
    s.regret.title = absl::StrFormat("Regret, cost weight %g", weight);
    s.regret.x = "decisions";
    s.regret.y = "regret";
    s.tradeoff.title = absl::StrFormat("Quality against cost, cost weight %g", weight);
    s.tradeoff.x = "USD a query";
    s.tradeoff.y = "quality";
    s.tradeoff.log_x = true;
    s.chosen.title = absl::StrFormat("Agents chosen, cost weight %g", weight);
    s.chosen.note = kShare;
    s.chosen.columns = log_.agents;
    return s;
  }

  absl::StatusOr<PolicyRuns> RunSeeds(const std::string& policy, Section& section) {
    PolicyRuns runs;
    runs.share.assign(log_.tasks.size(), std::vector<double>(log_.agents.size()));
    ReplayOptions o = a_.o;
    o.cost_weight = section.weight;
    o.ask_afterwards = true;
    for (int s = 0; s < a_.seeds; ++s) {
      if (isatty(2))
        std::fprintf(stderr, "\r%s, seed %d of %d\033[K", policy.c_str(), s + 1, a_.seeds);
      const auto run = Replay(log_, policy, o, a_.first_seed + static_cast<uint64_t>(s));
      if (!run.ok())
        return absl::Status(run.status().code(),
                            absl::StrCat(policy, ": ", run.status().message()));
      // Of the first policy: the same queries in the same order.
      if (section.first.size() < static_cast<size_t>(a_.seeds))
        section.first.push_back(run->LastThird());
      if (!a_.export_to.empty() && !exported_) {
        exported_ = true;
        SLUICE_RETURN_IF_ERROR(Export(log_, *run, a_.export_to));
      }
      runs.Add(log_, *run, section.first[s]);
    }
    if (isatty(2)) std::fprintf(stderr, "\r\033[K");
    return runs;
  }

  void AddPolicy(const std::string& policy, const PolicyRuns& runs, Section& s) const {
    const auto cell = [](const MeanInterval& m) { return ReportCell{"", m.value, m.low, m.high}; };
    const MeanInterval quality = StudentInterval(runs.quality);
    const MeanInterval usd = StudentInterval(runs.cost);
    s.table.rows.push_back({{policy},
                            cell(StudentInterval(runs.utility)),
                            cell(StudentInterval(runs.gain)),
                            cell(StudentInterval(runs.afterwards)),
                            {"", quality.value},
                            {"", usd.value},
                            cell(StudentInterval(runs.regret))});
    if (a_.o.session > 1) s.table.rows.back().push_back({"", StudentInterval(runs.moved).value});
    s.points.push_back({usd.value, quality.value});
    s.tradeoff.series.push_back(
        {policy, {{usd.value, quality.value, quality.low, quality.high, ""}}, false, false});
    ReportChart::Series line{policy, {}, true, false};
    for (int i = 0; i < kPoints; ++i) {
      const MeanInterval m = StudentInterval(runs.along[i]);
      line.points.push_back({static_cast<double>(DecisionsAt(i)), m.value, m.low, m.high, ""});
    }
    s.regret.series.push_back(std::move(line));
    AddChosen(policy, runs, s);
  }
  // Of all tasks together, and for the last policy by task.
  void AddChosen(const std::string& policy, const PolicyRuns& runs, Section& s) const {
    std::vector<double> all(log_.agents.size());
    double total = 0;
    for (const auto& task : runs.share) {
      for (size_t i = 0; i < task.size(); ++i) {
        all[i] += task[i];
        total += task[i];
      }
    }
    for (double& x : all) x /= std::max(1.0, total);
    s.chosen.rows.push_back(policy);
    s.chosen.values.push_back(std::move(all));

    s.by_task.title =
        absl::StrFormat("Agents chosen by %s for each task, cost weight %g", policy, s.weight);
    s.by_task.note = kShare;
    s.by_task.rows = log_.tasks;
    s.by_task.columns = log_.agents;
    s.by_task.values = runs.share;
    for (auto& task : s.by_task.values) {
      const double sum = std::accumulate(task.begin(), task.end(), 0.0);
      for (double& x : task) x = sum > 0 ? x / sum : NAN;
    }
  }
  void WriteCurve(const std::string& policy, const PolicyRuns& runs, const Section& s) const {
    if (curve_ == nullptr) return;
    for (int i = 0; i < kPoints; ++i) {
      const MeanInterval m = StudentInterval(runs.along[i]);
      std::fprintf(curve_.get(), "%g,\"%s\",%lld,%.3f,%.3f\n", s.weight, policy.c_str(),
                   static_cast<long long>(DecisionsAt(i)), m.value, m.high - m.value);
    }
  }
  static void PrintTable(const ReportTable& table) {
    Report printed;
    printed.title = table.title;
    printed.tables.push_back(table);
    printed.tables[0].title.clear();
    printed.tables[0].note.clear();
    std::printf("\n%s", ReportText(printed).c_str());
    std::fflush(stdout);
  }
  int64_t DecisionsAt(int point) const { return (point + 1) * a_.o.decisions / kPoints; }

  static constexpr char kShare[] = "share of the last third's decisions";
  struct Close {
    void operator()(FILE* f) const { std::fclose(f); }
  };
  const ReplayArgs& a_;
  const OutcomeLog& log_;
  const OutcomeLog& to_tune_on_;
  std::vector<std::string> policies_;
  nlohmann::ordered_json runs_;
  std::unique_ptr<FILE, Close> curve_;
  bool exported_ = false;  // of the first run of all
  Report report_;
};

const std::vector<double> kCostWeights = {0, 5, 20};
const std::vector<double> kNoCosts = {0};

absl::Status RunReplay(ReplayArgs a) {
  SLUICE_ASSIGN_OR_RETURN(const OutcomeLog all, LoadOutcomeLog(a.log));
  if (a.weights.empty()) a.weights = all.Complete({.cost = true}).ok() ? kCostWeights : kNoCosts;
  const bool weighs_cost =
      std::any_of(a.weights.begin(), a.weights.end(), [](double w) { return w != 0; });
  SLUICE_ASSIGN_OR_RETURN(const OutcomeLog log,
                          all.Complete({.cost = weighs_cost, .latency = a.o.latency_weight != 0}));
  if (log.rows.size() < all.rows.size())
    std::fprintf(stderr, "%zu of %zu rows are skipped: they do not tell every agent's answer\n",
                 all.rows.size() - log.rows.size(), all.rows.size());
  if (a.tune > 0) {
    if (a.queries != ReplayArgs::kAllQueries)
      return absl::InvalidArgumentError(
          "--tune tunes on the first half of the queries and reports the second; --queries is not "
          "for it");
    SLUICE_ASSIGN_OR_RETURN(const OutcomeLog to_tune_on, HalfOf(log, Half::kFirst));
    SLUICE_ASSIGN_OR_RETURN(const OutcomeLog held_out, HalfOf(log, Half::kSecond));
    return ReplayReport(a, held_out, to_tune_on).Run();
  }
  if (a.queries == ReplayArgs::kAllQueries) return ReplayReport(a, log, log).Run();
  const Half asked = a.queries == ReplayArgs::kFirstHalf ? Half::kFirst : Half::kSecond;
  SLUICE_ASSIGN_OR_RETURN(const OutcomeLog half, HalfOf(log, asked));
  return ReplayReport(a, half, half).Run();
}
}  // namespace

void AddReplay(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand(
      "replay", "Replay an outcome log through policies and say what each would have earned");
  auto a = std::make_shared<ReplayArgs>();
  s->add_option("--log", a->log,
                "CSV: id, task, quality:AGENT, cost_usd:AGENT, ... (plain or gzip)")
      ->required();
  s->add_option("--policy", a->policies,
                "as in the server's configuration; default: all built-in ones");
  s->add_option("--cost-weight", a->weights,
                "utility lost per USD; without it 0, 5 and 20, or 0 where the log tells no costs")
      ->delimiter(',');
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
  s->add_option("--queries", a->queries,
                "all, or the half of them (by the hash of their ids) that --tune tunes on, or the "
                "other")
      ->capture_default_str()
      ->check(CLI::IsMember(
          {ReplayArgs::kAllQueries, ReplayArgs::kFirstHalf, ReplayArgs::kSecondHalf}));
  s->add_option("--tune", a->tune,
                "try so many settings of each policy whose text holds ranges (prior=1..100), on "
                "the first half of the queries; the second half is reported")
      ->check(CLI::Range(1, 100000));
  s->add_option("--tune-seeds", a->tune_seeds, "repetitions of a setting")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  s->add_flag("--abilities-from-warm-up", a->o.ability_from_warm_up,
              "prior abilities are those of the warm-up's queries");
  s->add_option("--prior-ability", a->o.ability,
                "what every agent is thought able to before it was tried")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  s->add_option("--epoch", a->o.epoch, "decisions learned as one batch")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  s->add_option("--session-length", a->o.session, "queries of one task in a session")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  s->add_option("--affinity-price", a->o.affinity_price,
                "a session keeps its agent while no other promises so much more utility")
      ->check(CLI::NonNegativeNumber);
  s->add_flag("--predicted-intent", a->o.predicted_intent,
              "the log's intent columns instead of the task's name");
  s->add_option("--curve", a->curve, "CSV of regret along the way, with 95 % intervals");
  s->add_option("--runs", a->runs, "JSON of every seed's utility and regret");
  s->add_option("--export", a->export_to,
                "CSV of the first policy's decisions in Open Bandit Pipeline's columns");
  s->add_option(
      "--report", a->report,
      "prefix of an .html, .json and .csv report: regret, quality against cost, who was chosen");
  s->footer(
      "Example: sluice replay --log examples/agents/pool_a.csv.gz --policy thompson --policy "
      "amro_s --seeds 20\n"
      "         sluice replay --log examples/agents/pool_a.csv.gz --tune 24 --policy "
      "thompson:prior=0.5..100 --policy amro_s:pheromone=relative");
  s->callback([=] { exit(Done(RunReplay(*a))); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
