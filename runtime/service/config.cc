#include "sluice/runtime/service/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/dynload/installed.h"
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

#define SLUICE_DEFAULT(message, field, value) \
  if ((message)->field() == 0) (message)->set_##field(value)

absl::Status FillDefaults(v1::ServerConfig& c) {
  if (c.endpoint().empty()) c.add_endpoint("tcp://127.0.0.1:5571");
  auto* learning = c.mutable_learning();
  SLUICE_DEFAULT(learning, epoch_decisions, 64);
  SLUICE_DEFAULT(learning, window_epochs, 64);
  SLUICE_DEFAULT(learning, publish_ms, 20);
  SLUICE_DEFAULT(learning, gate, 0.5);
  SLUICE_DEFAULT(learning, snapshot_every, 20000);
  SLUICE_DEFAULT(learning, commit_ms, 2);
  auto* limits = c.mutable_limits();
  SLUICE_DEFAULT(limits, max_message_bytes, 1 << 20);
  SLUICE_DEFAULT(limits, max_batch, 1024);
  SLUICE_DEFAULT(limits, burst, 2 * limits->requests_per_s());
  SLUICE_DEFAULT(limits, feedback_queue, 65536);
  SLUICE_DEFAULT(limits, explained_decisions, 8192);
  auto* breaker = c.mutable_breaker();
  SLUICE_DEFAULT(breaker, failures, 5);
  SLUICE_DEFAULT(breaker, cooldown_s, 30);
  SLUICE_DEFAULT(breaker, probes, 2);
  if (c.http().host().empty()) c.mutable_http()->set_host("127.0.0.1");
  if (c.state().redis_prefix().empty()) c.mutable_state()->set_redis_prefix("sluice");
  if (c.policy().empty()) c.add_policy()->set_spec("amro_s");
  if (!c.state().sqlite().empty() && !c.state().redis().empty()) {
    return absl::InvalidArgumentError(
        "state: sqlite and redis are both given; allowed: one of them, or neither");
  }
  if (!(learning->gate() >= 0 && learning->gate() <= 1)) {
    return absl::OutOfRangeError(
        absl::StrCat("learning.gate: ", learning->gate(), " is outside [0, 1]"));
  }
  if (learning->window_epochs() > 4096) {
    return absl::OutOfRangeError(
        absl::StrCat("learning.window_epochs: ", learning->window_epochs(), " is above 4096"));
  }
  if (!(breaker->cooldown_s() > 0 && breaker->cooldown_s() < 1e6)) {
    return absl::OutOfRangeError(
        absl::StrCat("breaker.cooldown_s: ", breaker->cooldown_s(), " is outside (0, 1e6)"));
  }
  if (limits->explained_decisions() > 1 << 20 || limits->max_batch() > 65536 ||
      limits->feedback_queue() > 1 << 24 || limits->max_message_bytes() < 1024 ||
      limits->max_message_bytes() > 1 << 28) {
    return absl::OutOfRangeError(
        "limits: allowed explained_decisions up to 2^20, max_batch up to 65536, feedback_queue up "
        "to 2^24, "
        "max_message_bytes 1024 to 2^28");
  }
  if (c.http().port() > 65535)
    return absl::OutOfRangeError(absl::StrCat("http.port: ", c.http().port(), " is above 65535"));
  if (!c.curve().secret_key_file().empty() && c.curve().allow_file().empty()) {
    return absl::InvalidArgumentError(
        "curve: secret_key_file without allow_file would let every client in");
  }
  return absl::OkStatus();
}

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
}  // namespace

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
    PolicySet::Policy made{p.name(), p.spec(), nullptr, nullptr};
    std::unique_ptr<Gguf> weights;
    if (!p.weights().empty()) {
      absl::StatusOr<Gguf> file = Gguf::Open(p.weights());
      if (!file.ok()) return named(file.status());
      weights = std::make_unique<Gguf>(*std::move(file));
    }
    auto router = InstalledMethods().registry.agents.Create(p.spec(), weights.get());
    if (!router.ok())
      return named(WithRefused(
          absl::Status(router.status().code(),
                       absl::StrCat("policy '", p.name(), "': ", router.status().message()))));
    made.router = *std::move(router);
    auto plan = made.router->MakePlan(graph);
    if (!plan.ok())
      return named(absl::Status(plan.status().code(), absl::StrCat("policy '", p.name(), "': ",
                                                                   plan.status().message())));
    made.plan = *std::move(plan);
    set->policies.push_back(std::move(made));
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
  for (const v1::GuardrailConfig& g : s.config.experiment().guardrail()) {
    if (!(g.worse_by() >= 0) || std::isinf(g.worse_by()))
      return named(absl::OutOfRangeError(
          absl::StrCat("guardrail: worse_by ", g.worse_by(), " is not a number of at least 0")));
  }
  if (absl::Status status = MakeAssignment(s.config.experiment()).status();
      !status.ok() && !s.config.experiment().name().empty()) {
    return named(status);
  }
  s.policies = std::move(set);
  return s;
}

absl::StatusOr<ServerSettings> LoadSettings(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return ParseSettings(text.str(), path);
}
SLUICE_END_NAMESPACE
