#include "sluice/runtime/service/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/base/regular_file.h"
#include "sluice/runtime/base/utf8.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/service/affinity.h"
#include "sluice/runtime/service/endpoint.h"
#include "sluice/runtime/service/http_keys.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace {
class Errors final : public google::protobuf::io::ErrorCollector {
 public:
  explicit Errors(const std::string& origin) : origin_(origin) {}
  void AddError(int line, int column, const std::string& message) override {
    if (text.empty()) text = absl::StrCat(origin_, ":", line + 1, ":", column + 1, ": ", message);
  }
  std::string text;

 private:
  const std::string& origin_;
};

uint64_t Fingerprint(const AgentGraph& g) {  // names cannot hold the separators' meaning: each is
                                             // followed by its length
  std::string all;
  auto add = [&](absl::string_view name) { absl::StrAppend(&all, name, "\n", name.size(), "\n"); };
  for (const std::string& t : g.tasks) add(t);
  for (const auto& stage : g.stages) {
    absl::StrAppend(&all, "stage\n");
    for (const Agent& a : stage) add(a.id);
  }
  return HashText(all);
}

template <class T>
absl::Status InRange(absl::string_view name, T x, double least, double most) {
  const auto v = static_cast<double>(x);
  if (v >= least && v <= most) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat(name, ": ", x, " is outside [", least, ", ", most, "]"));
}

// A number that has its default where the file does not give it, and must be allowed where it does.
#define SLUICE_NUMBER(message, field, value, least, most)       \
  if (!(message)->has_##field()) (message)->set_##field(value); \
  SLUICE_RETURN_IF_ERROR(InRange(#message "." #field, (message)->field(), least, most))

// Each keeps a line of every agent: of large teams fewer, so that they take some 64 MiB at most.
uint32_t ExplainedOf(const v1::ServerConfig& c) {
  constexpr uint64_t kBytes = uint64_t{1} << 26;
  uint64_t agents = 1;
  for (const v1::StageConfig& s : c.stage()) agents += static_cast<uint64_t>(s.agent_size());
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(kBytes / (agents * sizeof(AgentCandidate)), 64, 8192));
}

absl::Status CheckNumbers(v1::ServerConfig& c) {
  auto* learning = c.mutable_learning();
  SLUICE_NUMBER(learning, epoch_decisions, 64, 1, 1 << 20);
  SLUICE_NUMBER(learning, window_epochs, 64, 1, 4096);
  SLUICE_NUMBER(learning, publish_ms, 20, 1, 60000);
  SLUICE_NUMBER(learning, gate, 0.5, 0, 1);
  SLUICE_NUMBER(learning, snapshot_every, 20000, 1, 1e9);
  SLUICE_NUMBER(learning, commit_ms, 2, 0, 1000);
  SLUICE_NUMBER(learning, explore, 0.02, 0, 1);
  auto* limits = c.mutable_limits();
  SLUICE_NUMBER(limits, max_message_bytes, 1 << 20, 1024, 1 << 28);
  SLUICE_NUMBER(limits, max_batch, 1024, 1, 65536);
  SLUICE_NUMBER(limits, requests_per_s, 0, 0, 1e9);
  SLUICE_NUMBER(limits, burst, 2 * limits->requests_per_s(), limits->requests_per_s() > 0 ? 1 : 0,
                2e9);
  SLUICE_NUMBER(limits, feedback_queue, 65536, 1, 1 << 24);
  SLUICE_NUMBER(limits, explained_decisions, ExplainedOf(c), 1, 1 << 20);
  SLUICE_NUMBER(limits, drain_s, 10, 0, 3600);
  SLUICE_NUMBER(limits, shutdown_delay_s, 0, 0, 3600);
  SLUICE_NUMBER(limits, reserve_s, 600, 1, 1e6);
  auto* breaker = c.mutable_breaker();
  SLUICE_NUMBER(breaker, failures, 5, 1, 1e6);
  SLUICE_NUMBER(breaker, cooldown_s, 30, 1e-3, 1e6);
  SLUICE_NUMBER(breaker, probes, 2, 1, 1e6);
  if (c.has_affinity()) {
    auto* affinity = c.mutable_affinity();
    SLUICE_NUMBER(affinity, price, 0.05, 0, 1e6);
    SLUICE_NUMBER(affinity, cost_weight, 0, 0, 1e9);
    SLUICE_NUMBER(affinity, latency_weight, 0, 0, 1e9);
    SLUICE_NUMBER(affinity, sessions, 65536, 1, 1 << 24);
  }
  auto* state = c.mutable_state();
  SLUICE_NUMBER(state, keep_outcomes, 4000000, 0, 1e12);
  SLUICE_NUMBER(state, keep_days, 0, 0, 36500);
  return InRange("http.port", c.http().port(), 0, 65535);
}

// Names go into answers, metrics and logs, where other bytes would break what is around them.
absl::Status CheckName(absl::string_view what, const std::string& name) {
  constexpr size_t kMost = 256;
  if (name.size() > kMost)
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": a name of ", name.size(), " bytes; allowed ", kMost));
  if (!IsUtf8(name))
    return absl::InvalidArgumentError(
        absl::StrCat(what, " '", absl::CHexEscape(name), "': its bytes are no UTF-8"));
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      return absl::InvalidArgumentError(
          absl::StrCat(what, " '", absl::CHexEscape(name), "': holds a control character"));
  }
  return absl::OkStatus();
}
absl::Status CheckNames(const v1::ServerConfig& c) {
  for (const std::string& task : c.task()) SLUICE_RETURN_IF_ERROR(CheckName("task", task));
  for (const v1::StageConfig& s : c.stage()) {
    SLUICE_RETURN_IF_ERROR(CheckName("stage", s.name()));
    for (const v1::AgentConfig& a : s.agent()) {
      for (const std::string& name : {a.id(), a.was(), a.model(), a.role()})
        SLUICE_RETURN_IF_ERROR(CheckName("agent", name));
    }
  }
  for (const v1::PolicyConfig& p : c.policy())
    SLUICE_RETURN_IF_ERROR(CheckName("policy", p.name()));
  for (const v1::BudgetConfig& b : c.budget()) {
    for (const std::string& name : {b.name(), b.agent(), b.key(), b.tag()})
      SLUICE_RETURN_IF_ERROR(CheckName("budget", name));
  }
  return CheckName("experiment", c.experiment().name());
}

absl::Status CheckExperiment(const v1::ExperimentConfig& e) {
  if (e.name().empty() && e.arm_size() > 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "experiment: ", e.arm_size(), " arms without a name; the name decides who gets which arm"));
  if (e.has_effect()) SLUICE_RETURN_IF_ERROR(InRange("experiment.effect", e.effect(), 1e-6, 1e6));
  for (const v1::GuardrailConfig& g : e.guardrail())
    SLUICE_RETURN_IF_ERROR(InRange("experiment.guardrail.worse_by", g.worse_by(), 0, 1e9));
  if (e.arm_size() == 0 && e.guardrail_size() > 0)
    return absl::InvalidArgumentError("experiment: guardrails without arms");
  return e.name().empty() ? absl::OkStatus() : MakeAssignment(e).status();
}

absl::Status CheckHost(const std::string& host) {
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (error != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("http.host: '", host, "': ", gai_strerror(error)));
  freeaddrinfo(found);
  return absl::OkStatus();
}

absl::Status CheckFile(absl::string_view name, const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const absl::Status opened = RegularFile::Open(path).status();
  return absl::Status(opened.code(), opened.ok() ? "" : absl::StrCat(name, ": ", opened.message()));
}

absl::Status CheckCurve(const v1::CurveConfig& c) {
  if (c.secret_key_file().empty() != c.allow_file().empty())
    return absl::InvalidArgumentError(
        c.allow_file().empty()
            ? "curve: secret_key_file without allow_file would let every client in"
            : "curve: allow_file without secret_key_file would serve everybody, in the clear");
  SLUICE_RETURN_IF_ERROR(CheckFile("curve.secret_key_file", c.secret_key_file()));
  return CheckFile("curve.allow_file", c.allow_file());
}

// Fills in what is not given; nothing that is given and wrong passes for it.
absl::Status FillDefaults(v1::ServerConfig& c) {
  if (c.endpoint().empty()) c.add_endpoint(DefaultEndpoint());
  for (const std::string& endpoint : c.endpoint()) SLUICE_RETURN_IF_ERROR(CheckEndpoint(endpoint));
  SLUICE_RETURN_IF_ERROR(CheckNumbers(c));
  SLUICE_RETURN_IF_ERROR(CheckNames(c));
  SLUICE_RETURN_IF_ERROR(CheckExperiment(c.experiment()));
  SLUICE_RETURN_IF_ERROR(CheckCurve(c.curve()));
  if (!c.http().key_file().empty())
    SLUICE_RETURN_IF_ERROR(BearerKeys::Open(c.http().key_file()).status());
  SLUICE_RETURN_IF_ERROR(CheckFile("intent.model", c.intent().model()));
  if (c.http().host().empty()) c.mutable_http()->set_host("127.0.0.1");
  SLUICE_RETURN_IF_ERROR(CheckHost(c.http().host()));
  if (c.state().redis_prefix().empty()) c.mutable_state()->set_redis_prefix("sluice");
  c.mutable_state()->set_sqlite(StatePath(c.state().sqlite()));
  if (c.policy().empty()) c.add_policy()->set_spec(kServedPolicy);
  SLUICE_RETURN_IF_ERROR(CheckFile("state.redis_password_file", c.state().redis_password_file()));
  if (c.state().redis().empty() && (!c.state().redis_user().empty() || c.state().redis_cluster() ||
                                    !c.state().redis_password_file().empty()))
    return absl::InvalidArgumentError(
        "state: redis_user, redis_password_file or redis_cluster without redis");
  if (!c.state().sqlite().empty() && !c.state().redis().empty())
    return absl::InvalidArgumentError(
        "state: sqlite and redis are both given; allowed: one of them, or neither");
  return absl::OkStatus();
}

// Changes where the text does, or the file that its weights are read from.
uint64_t FingerprintOf(const v1::PolicyConfig& p) {
  std::string text = absl::StrCat(p.spec(), "\n", p.weights());
  if (!p.weights().empty()) {
    std::error_code ignored;
    const auto written = std::filesystem::last_write_time(p.weights(), ignored);
    absl::StrAppend(&text, "\n", std::filesystem::file_size(p.weights(), ignored), "\n",
                    written.time_since_epoch().count());
  }
  return HashText(text);
}
absl::StatusOr<PolicySet::Policy> MakePolicy(const v1::PolicyConfig& p,
                                             const std::shared_ptr<const AgentGraph>& graph) {
  const auto named = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat("policy '", p.name(), "': ", status.message()));
  };
  PolicySet::Policy made;
  made.name = p.name();
  made.spec = p.spec();
  made.fingerprint = FingerprintOf(p);
  std::unique_ptr<Gguf> weights;
  if (!p.weights().empty()) {
    SLUICE_ASSIGN_OR_RETURN(Gguf file, Gguf::Open(p.weights()));
    weights = std::make_unique<Gguf>(std::move(file));
  }
  auto router = InstalledMethods().registry.agents.Create(p.spec(), weights.get());
  if (!router.ok()) return WithRefused(named(router.status()));
  made.router = *std::move(router);
  auto plan = made.router->MakePlan(graph);
  if (!plan.ok()) return named(plan.status());
  made.plan = *std::move(plan);
  return made;
}
// Scores candidates by their expected utility for the query's tasks; its choice is not used.
absl::StatusOr<PolicySet::Policy> MakeWorth(const v1::AffinityConfig& c,
                                            const std::shared_ptr<const AgentGraph>& graph) {
  v1::PolicyConfig p;
  p.set_name("affinity");
  p.set_spec(WorthSpec(c.cost_weight(), c.latency_weight()));
  return MakePolicy(p, graph);
}
}  // namespace

std::shared_ptr<AgentGraph> GraphOf(const v1::ServerConfig& c) {
  auto g = std::make_shared<AgentGraph>();
  g->tasks.assign(c.task().begin(), c.task().end());
  for (const v1::StageConfig& s : c.stage()) {
    g->stages.emplace_back();
    for (const v1::AgentConfig& a : s.agent()) {
      Agent agent;
      agent.id = a.id();
      agent.model = a.model();
      agent.role = a.role();
      agent.ability.assign(a.ability().begin(), a.ability().end());
      agent.cost_usd = a.cost_usd();
      agent.latency_s = a.latency_s();
      if (a.has_weight()) agent.weight = a.weight();
      g->stages.back().push_back(std::move(agent));
    }
  }
  return g;
}

int PolicySet::Find(absl::string_view name) const {
  for (size_t i = 0; i < policies.size(); ++i) {
    if (policies[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

std::string PolicySet::Names() const {
  return absl::StrJoin(policies, ", ",
                       [](std::string* out, const Policy& p) { out->append(p.name); });
}

absl::StatusOr<ArmAssignment> MakeAssignment(const v1::ExperimentConfig& e) {
  if (e.arm_size() == 1 || e.arm_size() > 250) {
    return absl::InvalidArgumentError(
        absl::StrCat("experiment: ", e.arm_size(), " arms, allowed 2 to 250"));
  }
  std::vector<ArmAssignment::Arm> arms;
  for (const v1::ArmConfig& a : e.arm())
    arms.push_back({a.policy(), a.has_weight() ? a.weight() : 1.0});
  return ArmAssignment::Create(std::move(arms), e.name(), e.has_exposure() ? e.exposure() : 1.0);
}

absl::StatusOr<ServerSettings> ParseSettings(const std::string& text, const std::string& origin) {
  ServerSettings s;
  Errors errors(origin);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  if (!parser.ParseFromString(text, &s.config)) return absl::InvalidArgumentError(errors.text);
  auto named = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(origin, ": ", status.message()));
  };
  if (absl::Status status = FillDefaults(s.config); !status.ok()) return named(status);
  auto set = std::make_shared<PolicySet>();
  auto graph = GraphOf(s.config);
  if (absl::Status status = ValidateGraph(*graph); !status.ok()) return named(status);
  set->graph = graph;
  set->fingerprint = Fingerprint(*graph);
  for (v1::PolicyConfig& p : *s.config.mutable_policy()) {
    if (p.name().empty()) p.set_name(p.spec().substr(0, p.spec().find(':')));
    if (set->Find(p.name()) >= 0)
      return named(
          absl::InvalidArgumentError(absl::StrCat("two policies are called '", p.name(), "'")));
    absl::StatusOr<PolicySet::Policy> made = MakePolicy(p, graph);
    if (!made.ok()) return named(made.status());
    set->policies.push_back(*std::move(made));
  }
  if (s.config.has_affinity()) {
    absl::StatusOr<PolicySet::Policy> worth = MakeWorth(s.config.affinity(), graph);
    if (!worth.ok()) return named(worth.status());
    set->worth = *std::move(worth);
  }
  absl::StatusOr<std::vector<BudgetRule>> budgets = BudgetRules(s.config, *graph);
  if (!budgets.ok()) return named(budgets.status());
  s.budgets = *std::move(budgets);
  if (!s.config.intent().model().empty()) {
    IntentLabels labels;
    for (const v1::LabelConfig& l : s.config.intent().label()) labels[l.name()] = l.task();
    auto intent = LoadIntentModel(s.config.intent().model(), graph->tasks, labels);
    if (!intent.ok()) return named(intent.status());
    s.intent = *std::move(intent);
  }
  if (s.config.active_policy().empty()) s.config.set_active_policy(set->policies[0].name);
  if (set->Find(s.config.active_policy()) < 0) {
    return named(absl::NotFoundError(absl::StrCat(
        "active_policy: no policy '", s.config.active_policy(), "'; known: ", set->Names())));
  }
  for (const v1::ArmConfig& arm : s.config.experiment().arm()) {
    if (set->Find(arm.policy()) < 0)
      return named(absl::NotFoundError(absl::StrCat("experiment: no policy '", arm.policy(), "'")));
  }
  for (const std::string& shadow : s.config.experiment().shadow()) {
    if (set->Find(shadow) < 0)
      return named(absl::NotFoundError(absl::StrCat("experiment: no policy '", shadow, "'")));
  }
  s.policies = std::move(set);
  return s;
}

absl::StatusOr<RedisOptions> RedisOptionsOf(const v1::StateConfig& c) {
  RedisOptions o;
  o.address = c.redis();
  o.prefix = c.redis_prefix();
  o.user = c.redis_user();
  o.cluster = c.redis_cluster();
  if (c.redis_password_file().empty()) return o;
  std::ifstream file(c.redis_password_file());
  if (!std::getline(file, o.password) || o.password.empty())
    return absl::InvalidArgumentError(
        absl::StrCat("state.redis_password_file: ", c.redis_password_file(),
                     ": cannot be read, or its first line is empty"));
  return o;
}

absl::StatusOr<ServerSettings> LoadSettings(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return ParseSettings(text.str(), path);
}
SLUICE_END_NAMESPACE
