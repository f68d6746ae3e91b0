#include <unistd.h>

#include <chrono>
#include <cmath>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/bandit_csv.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/evaluate.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
struct OpeArgs {
  std::string state, redis_prefix = "sluice";
  std::string redis_user, redis_password_file;
  bool redis_cluster = false;
  std::string since, until;  // days; "": no bound
  std::string export_to, report;
  bool json = false;
  OpeOptions o;
  OffPolicyOptions off_policy;
};

absl::StatusOr<std::unique_ptr<Store>> OpenState(const OpeArgs& a) {
  constexpr absl::string_view kRedis = "redis:";
  if (!absl::StartsWith(a.state, kRedis)) return OpenSqliteStore(a.state, StoreAccess::kRead);
  v1::StateConfig c;
  c.set_redis(a.state.substr(kRedis.size()));
  c.set_redis_prefix(a.redis_prefix);
  c.set_redis_user(a.redis_user);
  c.set_redis_password_file(a.redis_password_file);
  c.set_redis_cluster(a.redis_cluster);
  SLUICE_ASSIGN_OR_RETURN(RedisOptions options, RedisOptionsOf(c));
  options.access = StoreAccess::kRead;
  return OpenRedisStore(options);
}

// Milliseconds from 1970 to the day's begin in UTC.
absl::StatusOr<int64_t> Day(const std::string& text) {
  int year = 0;
  unsigned month = 0;
  unsigned day = 0;
  int length = 0;
  const int read = std::sscanf(text.c_str(), "%4d-%2u-%2u%n", &year, &month, &day, &length);
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day)};
  if (read != 3 || length != static_cast<int>(text.size()) || !date.ok() || year < 1970)
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no day; wanted YYYY-MM-DD, of UTC"));
  const std::chrono::milliseconds ms = std::chrono::sys_days(date).time_since_epoch();
  return ms.count();
}
std::string DayText(int64_t ms) {
  const auto days = std::chrono::floor<std::chrono::days>(
      std::chrono::sys_time<std::chrono::milliseconds>(std::chrono::milliseconds(ms)));
  const std::chrono::year_month_day date(days);
  return absl::StrFormat("%04d-%02u-%02u", static_cast<int>(date.year()),
                         static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()));
}

// Of all paths, the number of one: with a single stage, the agent's.
int64_t ActionOf(const AgentGraph& g, absl::Span<const int32_t> path) {
  int64_t action = 0;
  for (int s = 0; s < g.num_stages(); ++s)
    action = action * g.stage_size(s) + path[static_cast<size_t>(s)] - g.first_agent(s);
  return action;
}

std::string Notes(const OpeRun& run, const OpeArgs& a) {
  const OpeCounts& c = run.counts;
  std::string text = absl::StrCat(c.judged, " of ", c.outcomes, " outcomes");
  if (run.first_ms > 0)
    absl::StrAppend(&text, ", decided ", DayText(run.first_ms), " to ", DayText(run.last_ms));
  const std::pair<int64_t, const char*> left_out[] = {
      {c.other_graph, "of other graphs"},
      {c.labelled, "labelled"},
      {c.kept, "kept by a session"},
      {c.ungraded, "without a grade"},
      {c.unfit, "without a propensity or of another shape"},
      {c.outside, "outside what was asked for"}};
  const char* comma = "; left out: ";
  for (const auto& [n, why] : left_out) {
    if (n == 0) continue;
    absl::StrAppend(&text, comma, n, " ", why);
    comma = ", ";
  }
  absl::StrAppend(&text, ". Reward: quality - ", a.o.cost_weight, " * USD - ", a.o.latency_weight,
                  " * seconds");
  return text;
}

class OpeReport {
 public:
  OpeReport(const OpeArgs& a, const OpeRun& run) : a_(a), run_(run) {
    report_.title = "What other policies would have earned";
    report_.notes = Notes(run, a);
    values_.title = "Value of a query";
    values_.note = absl::StrCat(
        "Marked: the estimate to read: DR where the overlap is enough, else DRos, and then it is "
        "not to be relied on. Gain: over the mean of what was logged, paired by decision. 95 % "
        "intervals, ",
        a.off_policy.draws > 0 ? absl::StrCat("percentiles of ", a.off_policy.draws, " resamples")
                               : "normal",
        "; DM's is of its model alone.");
    values_.columns = {{"policy", -1}, {"estimator", -1}, {"value", 4}, {"gain", 4}};
    overlap_.title = "Overlap with what was logged";
    overlap_.note = absl::StrFormat(
        "Effective: Kish's effective decisions. Mean weight: 1 where all that a policy would do "
        "was "
        "done at times. Never and rarely: share of what it would do that the logging policy never "
        "did, or with a propensity below %g.",
        kRarePropensity);
    overlap_.columns = {{"policy", -1}, {"effective", 0}, {"mean weight", 4}, {"largest", 1},
                        {"top 1 %", 3}, {"never", 3},     {"rarely", 3},      {"reliable", -1}};
  }
  absl::StatusOr<Report> Make() {
    SLUICE_RETURN_IF_ERROR(AddLogged());
    for (const OpePolicy& p : run_.policies) SLUICE_RETURN_IF_ERROR(Add(p));
    report_.tables.push_back(std::move(values_));
    report_.tables.push_back(std::move(overlap_));
    return std::move(report_);
  }

 private:
  // The logging policy as a target: every weight is 1.
  absl::Status AddLogged() {
    std::vector<LoggedDecision> log = run_.policies[0].log;
    for (LoggedDecision& d : log) d.target = d.propensity;
    SLUICE_ASSIGN_OR_RETURN(const OffPolicyEstimate e,
                            EvaluateOffPolicy(log, OffPolicy::kIps, a_.off_policy));
    values_.rows.push_back({{"(as logged)"}, {"mean"}, {"", e.value, e.low, e.high}, {}});
    values_.marked.push_back(false);
    return absl::OkStatus();
  }
  absl::Status Add(const OpePolicy& p) {
    const Overlap o = OverlapOf(p.log);
    for (OffPolicy how : kOffPolicies) {
      SLUICE_ASSIGN_OR_RETURN(const OffPolicyEstimate e,
                              EvaluateOffPolicy(p.log, how, a_.off_policy));
      values_.rows.push_back({{p.name},
                              {OffPolicyName(how)},
                              {"", e.value, e.low, e.high},
                              {"", e.gain.value, e.gain.low, e.gain.high}});
      values_.marked.push_back(how == MainEstimator(o));
    }
    overlap_.rows.push_back({{p.name},
                             {"", o.effective_decisions},
                             {"", o.mean_weight},
                             {"", o.largest_weight},
                             {"", o.top_share},
                             {"", o.never_taken},
                             {"", o.rarely_taken},
                             {o.reliable ? "yes" : absl::StrCat("NO: ", o.reason)}});
    return absl::OkStatus();
  }

  const OpeArgs& a_;
  const OpeRun& run_;
  Report report_;
  ReportTable values_, overlap_;
};

absl::StatusOr<OpeRun> Evaluate(OpeArgs& a, Store& store) {
  if (!a.since.empty()) {
    SLUICE_ASSIGN_OR_RETURN(a.o.since_ms, Day(a.since));
  }
  if (!a.until.empty()) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t begin, Day(a.until));
    a.o.until_ms = begin + 24LL * 3600 * 1000;
  }
  if (isatty(2)) {
    a.o.progress = [](int64_t done, int64_t of) {
      std::fprintf(stderr, "\r%lld of %lld outcomes\033[K", static_cast<long long>(done),
                   static_cast<long long>(of));
    };
  }
  std::unique_ptr<BanditCsv> csv;
  absl::Status written;
  if (!a.export_to.empty()) {
    a.o.each = [&](const AgentGraph& g, const OutcomeRecord& o, double reward) {
      if (csv == nullptr && written.ok()) {
        auto made = BanditCsv::Create(a.export_to, g.tasks.size());
        written = made.status();
        if (made.ok()) csv = *std::move(made);
      }
      if (csv != nullptr)
        csv->Add(o.decision.unix_ms, ActionOf(g, o.decision.path), reward, o.decision.propensity,
                 o.decision.intent);
    };
  }
  absl::StatusOr<OpeRun> run = EvaluateStore(store, a.o);
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  if (csv != nullptr) written.Update(csv->Close());
  SLUICE_RETURN_IF_ERROR(written);
  return run;
}

absl::Status RunOpe(OpeArgs a) {
  if (!a.report.empty()) SLUICE_RETURN_IF_ERROR(CheckWritable(a.report + ".html"));
  if (!a.export_to.empty()) SLUICE_RETURN_IF_ERROR(CheckWritable(a.export_to));
  SLUICE_ASSIGN_OR_RETURN(const auto store, OpenState(a));
  const auto named = [&](const absl::Status& s) {
    return absl::Status(s.code(), absl::StrCat(a.state, ": ", s.message()));
  };
  const absl::StatusOr<OpeRun> run = Evaluate(a, *store);
  if (!run.ok()) return named(run.status());
  SLUICE_ASSIGN_OR_RETURN(const Report report, OpeReport(a, *run).Make());
  std::printf("%s\n", a.json ? ReportJson(report).c_str() : ReportText(report).c_str());
  if (a.report.empty()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(WriteReport(report, a.report));
  std::fprintf(stderr, "wrote %s.html, .json, .csv\n", a.report.c_str());
  return absl::OkStatus();
}

void AddWhatIsJudged(CLI::App& s, OpeArgs& a) {
  s.add_option("--state", a.state, "SQLite file of a server, or redis:ADDRESS")->required();
  s.add_option("--redis-prefix", a.redis_prefix, "of the server's keys")->capture_default_str();
  s.add_option("--redis-user", a.redis_user, "who reads; none: the default user");
  s.add_option("--redis-password-file", a.redis_password_file, "its first line");
  s.add_flag("--redis-cluster", a.redis_cluster, "ADDRESS names nodes of a cluster, with commas");
  s.add_option("--policy", a.o.policies,
               "text as in the server's configuration, or the name of one there")
      ->required();
  s.add_option("--since", a.since, "judge decisions from this day, YYYY-MM-DD of UTC");
  s.add_option("--until", a.until, "to this day, with it");
  s.add_option("--last", a.o.last, "and of these the newest so many; all before are learned from")
      ->check(Allowed<int64_t>(2, int64_t{1} << 40));
  s.add_option("--cost-weight", a.o.cost_weight, "reward lost per USD")
      ->capture_default_str()
      ->check(Allowed(0.0, 1e9));
  s.add_option("--latency-weight", a.o.latency_weight, "reward lost per second")
      ->capture_default_str()
      ->check(Allowed(0.0, 1e9));
  s.add_option("--explore", a.o.explore, "share that the policies would spread evenly")
      ->capture_default_str()
      ->check(Allowed(0.0, 1.0));
  s.add_option("--window-epochs", a.o.window, "the server's learning.window_epochs")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 4096));
}
void AddEstimators(CLI::App& s, OpeArgs& a) {
  OffPolicyOptions& o = a.off_policy;
  s.add_option("--bootstrap", o.draws,
               "intervals by so many resamples of the decisions; 0: normal ones")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, 1000000));
  s.add_option("--clip", o.clip, "clipped IPS: the largest weight")
      ->capture_default_str()
      ->check(Allowed(1e-6, 1e12));
  s.add_option("--switch-at", o.switch_at, "SWITCH-DR: weights above it are left to the model")
      ->capture_default_str()
      ->check(Allowed(1e-6, 1e12));
  s.add_option("--shrink", o.shrink, "DRos: a weight of this number's root counts half")
      ->capture_default_str()
      ->check(Allowed(1e-6, 1e12));
}
}  // namespace

void AddOpe(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand(
      "ope", "Say what other policies would have earned on the traffic that a server served");
  auto a = std::make_shared<OpeArgs>();
  AddWhatIsJudged(*s, *a);
  AddEstimators(*s, *a);
  s->add_flag("--json", a->json, "the report as JSON instead of tables");
  s->add_option("--report", a->report, "prefix of an .html, .json and .csv report");
  s->add_option("--export", a->export_to,
                "CSV of the judged decisions in Open Bandit Pipeline's columns");
  s->footer(
      "Estimators: IPS, clipped IPS, SNIPS, DM, DR, SNDR, SWITCH-DR, DRos. The marked one is to be "
      "read. An estimate is called reliable\nonly where the logging policy often enough did what "
      "the other would do: let it explore (learning.explore).\n"
      "Example: sluice ope --state sluice.sqlite --policy thompson --policy amro_s:beta=5 "
      "--cost-weight 5 --since 2026-11-01");
  s->callback([=] { exit(Done(RunOpe(*a))); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
