// Commands that talk to a running server.
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
void Connection::AddTo(CLI::App& app) {
  app.add_option("--endpoint", endpoint, "where the server listens")->capture_default_str();
  app.add_option("--server-key", server_key, "CURVE: the server's public key");
  app.add_option("--secret-key", secret_key_file, "CURVE: file of our secret key");
  app.add_option("--timeout-ms", timeout_ms, "of one try")
      ->capture_default_str()
      ->check(CLI::Range(1, 3600000));
}
absl::StatusOr<std::unique_ptr<Client>> Connection::Open() const {
  Client::Options o;
  o.timeout = std::chrono::milliseconds(timeout_ms);
  o.server_key = server_key;
  if (server_key.empty() != secret_key_file.empty())
    return absl::InvalidArgumentError(absl::StrCat(
        "--",
        server_key.empty() ? "secret-key without --server-key" : "server-key without --secret-key",
        ": encryption needs both, and without them everything goes in the clear"));
  if (!server_key.empty()) {
    SLUICE_ASSIGN_OR_RETURN(o.keys, ReadSecretKey(secret_key_file));
  }
  return Client::Connect(endpoint, o);
}
namespace {
// Runs one request; its answer, or the exit status of a failure already told.
absl::StatusOr<v1::Response> Ask(const Connection& c, const v1::Request& q) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, c.Open());
  absl::StatusOr<v1::Response> r = client->Call(q);
  if (absl::IsDeadlineExceeded(r.status()))
    return absl::DeadlineExceededError(
        absl::StrCat(c.endpoint, ": ", r.status().message(), "; is `sluice serve` running there?"));
  return r;
}
int Route(const Connection& c, const v1::Query& query) {
  v1::Request q;
  *q.mutable_route()->add_queries() = query;
  const auto r = Ask(c, q);
  if (!r.ok()) return Fail(r.status());
  const v1::Decision& d = r->route().decisions(0);
  if (d.has_error()) return Fail(StatusOf(d.error()));
  std::printf("decision   %llu\n", static_cast<unsigned long long>(d.id()));
  for (int s = 0; s < d.agents_size(); ++s) {
    std::printf("stage %-4d %s%s", s + 1, d.agents(s).c_str(), d.kept() ? " (kept)" : "");
    if (s < d.fallbacks_size() && d.fallbacks(s).agents_size() > 0)
      std::printf("   else %s", absl::StrJoin(d.fallbacks(s).agents(), ", ").c_str());
    std::printf("\n");
  }
  std::printf("policy     %s\npropensity %.6g\nreceipt    %s\n", d.policy().c_str(), d.propensity(),
              absl::WebSafeBase64Escape(d.receipt()).c_str());
  return 0;
}
int Feedback(const Connection& c, const std::string& receipt, const v1::Outcome& given) {
  v1::Outcome o = given;
  if (!absl::WebSafeBase64Unescape(receipt, o.mutable_receipt()))
    return Fail(absl::InvalidArgumentError("--receipt is not what `sluice route` printed"));
  v1::Request q;
  *q.mutable_feedback()->add_outcomes() = o;
  const auto r = Ask(c, q);
  if (!r.ok()) return Fail(r.status());
  const v1::FeedbackResult& result = r->feedback().results(0);
  if (result.status() == v1::FeedbackResult::REJECTED)
    return Fail(absl::InvalidArgumentError(result.reason()));
  v1::Request health;
  health.mutable_health();
  const auto kept = Ask(c, health);
  std::printf(
      "decision %llu: %s%s\n", static_cast<unsigned long long>(result.decision_id()),
      result.status() == v1::FeedbackResult::APPLIED ? "kept" : "was kept before; nothing changed",
      kept.ok() ? absl::StrCat(" (", kept->health().state(), ")").c_str() : "");
  return 0;
}
int Explain(const Connection& c, uint64_t id) {
  v1::Request q;
  q.mutable_explain()->set_decision_id(id);
  const auto r = Ask(c, q);
  if (!r.ok()) return Fail(r.status());
  const v1::ExplainResponse& e = r->explain();
  std::printf("decision %llu by %s (%s), state %llu, propensity %.6g\nquery:",
              static_cast<unsigned long long>(e.decision_id()), e.policy().c_str(),
              e.spec().c_str(), static_cast<unsigned long long>(e.snapshot()), e.propensity());
  for (const v1::TaskWeight& w : e.intent()) std::printf(" %s %.3f", w.task().c_str(), w.weight());
  std::printf("\n");
  for (int s = 0; s < e.stages_size(); ++s) {
    std::printf("\nstage %d\n  %-28s %12s %12s %12s\n", s + 1, "agent", "pheromone", "heuristic",
                "probability");
    for (const v1::Candidate& x : e.stages(s).candidates()) {
      std::printf("%s %-28s %12.5g %12.5g %12.5g  %s\n", x.chosen() ? ">" : " ", x.agent().c_str(),
                  x.tau(), x.eta(), x.p(), x.blocked().c_str());
      if (!x.why().empty())
        std::printf(
            "    %s%s\n", x.why().c_str(),
            x.free_in_s() > 0 ? absl::StrFormat("; free in %.0f s", x.free_in_s()).c_str() : "");
    }
  }
  return 0;
}
int Top(const Connection& c, bool once) {
  const auto client = c.Open();
  if (!client.ok()) return Fail(client.status());
  uint64_t before = 0;
  for (bool first = true;; first = false) {
    v1::Request q;
    q.mutable_stats();
    const auto r = (*client)->Call(q);
    if (!r.ok()) return Fail(r.status());
    const v1::StatsResponse& s = r->stats();
    if (!once && isatty(1)) std::printf("\033[H\033[2J");
    std::printf("policy %s   up %.0f s   decisions %llu", s.policy().c_str(), s.uptime_s(),
                static_cast<unsigned long long>(s.decisions()));
    if (!first) std::printf(" (%llu/s)", static_cast<unsigned long long>(s.decisions() - before));
    before = s.decisions();
    std::printf(
        "   decide p50 %.2f us p99 %.2f us\noutcomes %llu (queued %llu)   duplicates %llu   "
        "rejected %llu   malformed "
        "%llu   overloaded %llu\n"
        "mean quality %.4f   mean cost %.6f USD   state %llu, %.3f s old\n\n%-30s %10s %9s %10s "
        "%8s %10s %8s %s\n",
        s.decide_p50_us(), s.decide_p99_us(), static_cast<unsigned long long>(s.feedbacks()),
        static_cast<unsigned long long>(s.feedback_queue()),
        static_cast<unsigned long long>(s.duplicates()),
        static_cast<unsigned long long>(s.rejected()),
        static_cast<unsigned long long>(s.malformed()),
        static_cast<unsigned long long>(s.overloaded()), s.mean_quality(), s.mean_cost_usd(),
        static_cast<unsigned long long>(s.snapshot()), s.snapshot_age_s(), "agent", "chosen",
        "in flight", "latency s", "quality", "USD", "failed", "breaker");
    for (const v1::AgentStats& a : s.agents()) {
      std::printf("%-30s %10llu %9.1f %10.3f %8.3f %10.4f %8llu %s\n", a.agent().c_str(),
                  static_cast<unsigned long long>(a.chosen()), a.in_flight(), a.latency_s(),
                  a.quality(), a.cost_usd(), static_cast<unsigned long long>(a.failures()),
                  a.over_budget() ? "over budget" : a.breaker().c_str());
      if (!a.breaker_why().empty())
        std::printf("  for %.0f s more: %s\n", a.breaker_ends_in_s(), a.breaker_why().c_str());
    }
    std::fflush(stdout);
    for (const v1::BudgetStats& b : s.budgets()) {
      std::printf("budget %-23s %10.4f spent, %.4f held of %.4f USD a %s, %.0f s left of it\n",
                  b.name().c_str(), b.spent_usd(), b.reserved_usd(), b.limit_usd(),
                  b.period().c_str(), b.ends_in_s());
    }
    if (once) return 0;
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}
// Every agent's known answer to every query of the log, a batch at a time. Sent again, nothing
// changes.
int WarmUp(const Connection& c, const std::string& path, double share) {
  const auto log = LoadOutcomeLog(path);
  if (!log.ok()) return Fail(log.status());
  const auto client = c.Open();
  if (!client.ok()) return Fail(client.status());
  uint64_t fresh = 0, known = 0, untold = 0;
  const size_t rows = static_cast<size_t>(share * static_cast<double>(log->rows.size()));
  for (size_t i = 0; i < rows; ++i) {
    const OutcomeLog::Row& r = log->rows[i];
    v1::Request q;
    for (size_t a = 0; a < log->agents.size(); ++a) {
      if (std::isnan(r.quality[a])) {
        ++untold;
        continue;
      }
      v1::Outcome& o = *q.mutable_feedback()->add_outcomes();
      v1::Labelled& l = *o.mutable_labelled();
      l.set_key(absl::StrCat(r.id, "\n", log->agents[a]));
      l.add_agents(log->agents[a]);
      l.set_task(log->tasks[r.task]);
      l.mutable_features()->Add(r.features.begin(), r.features.end());
      o.set_quality(r.quality[a]);
      o.set_cost_usd(ZeroIfUnknown(r.cost_usd[a]));
      o.set_latency_s(ZeroIfUnknown(r.latency_s[a]));
    }
    if (q.feedback().outcomes().empty()) continue;
    const auto answer = (*client)->Call(q);
    if (!answer.ok()) return Fail(answer.status());
    for (const v1::FeedbackResult& f : answer->feedback().results()) {
      if (f.status() == v1::FeedbackResult::REJECTED)
        return Fail(absl::InvalidArgumentError(absl::StrCat(r.id, ": ", f.reason())));
      (f.status() == v1::FeedbackResult::APPLIED ? fresh : known) += 1;
    }
    if (isatty(2) && i % 64 == 0) std::fprintf(stderr, "\r%zu of %zu queries\033[K", i, rows);
  }
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  std::printf("%llu outcomes learned, %llu known before", static_cast<unsigned long long>(fresh),
              static_cast<unsigned long long>(known));
  if (untold > 0)
    std::printf(", %llu skipped: the log does not tell them",
                static_cast<unsigned long long>(untold));
  std::printf("\n");
  return 0;
}
int ReadExperiment(const Connection& c) {
  v1::Request q;
  q.mutable_experiment();
  const auto r = Ask(c, q);
  if (!r.ok()) return Fail(r.status());
  const v1::ExperimentResponse& e = r->experiment();
  if (e.arms_size() > 0)
    std::printf("experiment %s\n%-20s %8s %8s %9s %10s %8s %10s %18s %9s %8s\n", e.name().c_str(),
                "arm", "weight", "units", "outcomes", "quality", "USD", "latency s", "gain, 95 %",
                "var. kept", "p");
  for (const v1::ArmResult& a : e.arms()) {
    const auto mean = [&](v1::Metric m) { return a.metrics(static_cast<int>(m)).mean(); };
    const v1::MetricResult& q = a.metrics(v1::QUALITY);
    std::printf("%-20s %8.3g %8llu %9llu %10.4f %8.6f %10.3f %+9.4f +- %.4f %9.2f %8.2g\n",
                a.policy().c_str(), a.weight(), static_cast<unsigned long long>(a.units()),
                static_cast<unsigned long long>(a.outcomes()), mean(v1::QUALITY),
                mean(v1::COST_USD), mean(v1::LATENCY_S), q.gain(), q.half_interval(),
                q.variance_kept(), a.p());
    if (!a.stopped().empty())
      std::printf("  stopped, its units get the control: %s\n", a.stopped().c_str());
  }
  if (e.units_left_out() > 0)
    std::printf("%llu outcomes of units beyond those that are kept count for nothing here\n",
                static_cast<unsigned long long>(e.units_left_out()));
  if (e.arms_size() > 0 && !e.readable())
    std::printf("units were not split as planned (p %.2g): believe none of this\n",
                e.sample_ratio_p());
  for (const v1::ShadowResult& s : e.shadows()) {
    std::printf("shadow %-13s %llu decisions, %.1f %% as executed\n", s.policy().c_str(),
                static_cast<unsigned long long>(s.decisions()),
                s.decisions() > 0
                    ? 100.0 * static_cast<double>(s.same()) / static_cast<double>(s.decisions())
                    : 0.0);
  }
  return 0;
}
int Policy(const Connection& c, const std::string& name) {
  v1::Request q;
  if (!name.empty()) {
    q.mutable_set_policy()->set_name(name);
    const auto r = Ask(c, q);
    if (!r.ok()) return Fail(r.status());
    std::printf("%s -> %s\n", r->set_policy().previous().c_str(), name.c_str());
    return 0;
  }
  q.mutable_list_policies();
  const auto r = Ask(c, q);
  if (!r.ok()) return Fail(r.status());
  for (const v1::PolicyInfo& p : r->list_policies().policies()) {
    std::printf("%s %-20s %s  (%llu outcomes, %llu late)\n", p.active() ? "*" : " ",
                p.name().c_str(), p.spec().c_str(), static_cast<unsigned long long>(p.outcomes()),
                static_cast<unsigned long long>(p.late()));
  }
  return 0;
}

using Shared = std::shared_ptr<Connection>;
// A command of its own, with the options of the connection that all of them share.
CLI::App& Add(CLI::App& app, const Shared& connection, const char* name, const char* help) {
  CLI::App& s = *app.add_subcommand(name, help);
  connection->AddTo(s);
  return s;
}

void AddRoute(CLI::App& app, const Exit& exit, const Shared& connection) {
  struct Args {
    std::string task, text, unit, session;
    std::vector<std::string> tags;
    std::vector<double> intent;
    std::vector<std::string> exclude;
    double most = 0;
  };
  auto a = std::make_shared<Args>();
  CLI::App& s = Add(app, connection, "route", "Ask for one decision");
  s.add_option("--task", a->task, "a task of the server's configuration");
  s.add_option("--intent", a->intent, "a weight for each task")->delimiter(',');
  s.add_option("--text", a->text, "the query itself, for a server with an intent model");
  s.add_option("--unit", a->unit, "user or session, for a running experiment");
  s.add_option("--session", a->session, "keeps its agents, as the configuration's affinity says");
  s.add_option("--tag", a->tags, "whose budgets pay: a team, a project")->delimiter(',');
  s.add_option("--exclude", a->exclude, "agents that may not be chosen")->delimiter(',');
  s.add_option("--max-cost-usd", a->most, "no agent with a higher expected cost")
      ->check(CLI::NonNegativeNumber);
  s.footer("Example: sluice route --task math --exclude gpt-4");
  s.callback([=] {
    v1::Query q;
    q.set_task(a->task);
    q.set_text(a->text);
    q.set_unit(a->unit);
    q.set_session(a->session);
    for (const std::string& tag : a->tags) q.add_tag(tag);
    q.set_max_cost_usd(a->most);
    q.mutable_intent()->Add(a->intent.begin(), a->intent.end());
    for (const std::string& e : a->exclude) q.add_exclude(e);
    exit(Route(*connection, q));
  });
}
void AddFeedback(CLI::App& app, const Exit& exit, const Shared& connection) {
  struct Args {
    std::string receipt;
    double quality = 0, cost_usd = 0, latency_s = 0;
  };
  auto a = std::make_shared<Args>();
  CLI::App& s = Add(app, connection, "feedback", "Tell how a decision ended");
  s.add_option("--receipt", a->receipt, "what `sluice route` printed")->required();
  s.add_option("--quality", a->quality, "of the answer, [0, 1]")->required();
  s.add_option("--cost-usd", a->cost_usd, "of all calls");
  s.add_option("--latency-s", a->latency_s, "of all calls");
  s.footer(
      "Example: sluice feedback --receipt AQAB... --quality 1 --cost-usd 0.002 --latency-s 1.4");
  s.callback([=] {
    v1::Outcome outcome;
    outcome.set_quality(a->quality);
    outcome.set_cost_usd(a->cost_usd);
    outcome.set_latency_s(a->latency_s);
    exit(Feedback(*connection, a->receipt, outcome));
  });
}
void AddExplain(CLI::App& app, const Exit& exit, const Shared& connection) {
  auto id = std::make_shared<uint64_t>(0);
  CLI::App& s = Add(app, connection, "explain",
                    "Say why a decision was made: candidates, pheromone, heuristic, probability");
  s.add_option("decision", *id, "its number")->required();
  s.footer("Example: sluice explain 1048577");
  s.callback([=] { exit(Explain(*connection, *id)); });
}
void AddTop(CLI::App& app, const Exit& exit, const Shared& connection) {
  auto once = std::make_shared<bool>(false);
  CLI::App& s = Add(app, connection, "top", "Watch a server");
  s.add_flag("--once", *once, "print once and end");
  s.footer("Example: sluice top --once");
  s.callback([=] { exit(Top(*connection, *once)); });
}
void AddExperiment(CLI::App& app, const Exit& exit, const Shared& connection) {
  CLI::App& s = Add(app, connection, "experiment",
                    "Read the running experiment, as often as you like: its intervals hold at all "
                    "times at once");
  s.footer("Example: sluice experiment");
  s.callback([=] { exit(ReadExperiment(*connection)); });
}
void AddWarmUp(CLI::App& app, const Exit& exit, const Shared& connection) {
  struct Args {
    std::string log;
    double share = 1;
  };
  auto a = std::make_shared<Args>();
  CLI::App& s = Add(
      app, connection, "warm-up",
      "Teach a server from labelled data before it serves: every agent's answer to every query");
  s.add_option("--log", a->log,
               "as `sluice replay` reads it; its agents must be the server's, in one stage")
      ->required();
  s.add_option("--share", a->share, "of its queries, the first ones")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  s.footer("Example: sluice warm-up --log outcomes.csv.gz");
  s.callback([=] { exit(WarmUp(*connection, a->log, a->share)); });
}
void AddPolicy(CLI::App& app, const Exit& exit, const Shared& connection) {
  auto name = std::make_shared<std::string>();
  CLI::App& s = Add(app, connection, "policy", "List a server's policies, or make one active");
  s.add_option("name", *name, "the one to make active");
  s.footer("Example: sluice policy thompson");
  s.callback([=] { exit(Policy(*connection, *name)); });
}
}  // namespace

void AddAsk(CLI::App& app, const Exit& exit) {
  const auto connection = std::make_shared<Connection>();
  AddRoute(app, exit, connection);
  AddFeedback(app, exit, connection);
  AddExplain(app, exit, connection);
  AddTop(app, exit, connection);
  AddExperiment(app, exit, connection);
  AddWarmUp(app, exit, connection);
  AddPolicy(app, exit, connection);
}
}  // namespace cli
SLUICE_END_NAMESPACE
