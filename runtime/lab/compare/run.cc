#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/base/regular_file.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/score.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CompareDocument, policy, context, document, nll, counted, right,
                                   asked, exact_pairs, causal_pairs, attention_macs, kv_bytes,
                                   linear_macs, weight_bytes, total_s, plan_s, attend_s,
                                   predicted_attend_s, layer_density, head_density,
                                   layer_attention_s, mass_recall, mass_recall_p5, mass_recall_min,
                                   rel_error, block_map)
namespace {
using nlohmann::json;

absl::Status Named(const std::string& policy, const absl::Status& s) {
  return absl::Status(s.code(), absl::StrCat("policy '", policy, "': ", s.message()));
}

class Comparison {
 public:
  Comparison(const host::Model& model, const std::vector<int32_t>& tokens, const CompareOptions& o)
      : model_(model), tokens_(tokens), o_(o) {}
  absl::StatusOr<std::vector<CompareDocument>> Run(const std::string& model_path) {
    SLUICE_RETURN_IF_ERROR(Check());
    SLUICE_RETURN_IF_ERROR(MakeKeys(model_path));
    SLUICE_RETURN_IF_ERROR(ReadFinished());
    for (size_t c = 0; c < o_.contexts.size(); ++c) {
      SLUICE_ASSIGN_OR_RETURN(const auto prompts, Prompts(o_.contexts[c], documents_[c]));
      for (const std::string& policy : o_.policies)
        SLUICE_RETURN_IF_ERROR(RunPolicy(policy, o_.contexts[c], prompts));
    }
    Say("done", 1);
    return std::move(done_);
  }

 private:
  using Cell = std::tuple<std::string, int64_t, int64_t>;  // policy, context, document
  // An engine under one policy, and what its plans list. Its callback points here: it stays where
  // it is.
  struct Measured {
    std::unique_ptr<host::Engine> engine;
    std::optional<ListedPairs> listed;
    double predicted_s = 0;
  };

  absl::Status Check();
  absl::Status MakeKeys(const std::string& model_path);
  absl::Status ReadFinished();
  absl::StatusOr<std::vector<host::FactPrompt>> Prompts(int64_t context, int64_t documents) const;
  absl::Status RunPolicy(const std::string& policy, int64_t context,
                         const std::vector<host::FactPrompt>& prompts);
  absl::Status MakeEngine(const std::string& policy, int64_t context, Measured& m);
  absl::StatusOr<CompareDocument> Measure(const std::string& policy, int64_t context,
                                          const host::FactPrompt& prompt, Measured& m);
  absl::Status Keep(const CompareDocument& d) const;
  void Say(const std::string& what, double share) const {
    if (o_.progress) o_.progress(what, share);
  }

  const host::Model& model_;
  const std::vector<int32_t>& tokens_;
  const CompareOptions& o_;
  std::vector<int64_t> documents_;           // of each context
  std::map<std::string, std::string> keys_;  // of a policy: what its figures depend on
  std::map<Cell, CompareDocument> known_;
  std::optional<AttentionClock> clock_;
  std::vector<CompareDocument> done_;
  double total_ = 0, spent_ = 0;  // in tokens
};

absl::Status Comparison::Check() {
  if (o_.policies.empty() || o_.contexts.empty() || o_.documents < 1 ||
      (!o_.perplexity && !o_.facts))
    return absl::InvalidArgumentError(
        "compare: wanted at least one policy, one context, one document and one task");
  for (auto p = o_.policies.begin(); p != o_.policies.end(); ++p) {
    if (std::find(o_.policies.begin(), p, *p) != p)
      return absl::InvalidArgumentError(absl::StrCat("compare: policy '", *p, "' is given twice"));
  }
  const auto policies = static_cast<double>(o_.policies.size());
  for (int64_t c : o_.contexts) {
    if (c < 64 || c > model_.shape.context)
      return absl::OutOfRangeError(
          absl::StrCat("context ", c, ", allowed 64 to the model's ", model_.shape.context));
    documents_.push_back(std::min(o_.documents, static_cast<int64_t>(tokens_.size()) / c));
    if (documents_.back() < 1)
      return absl::OutOfRangeError(
          absl::StrCat("context ", c, ", but there are only ", tokens_.size(), " tokens of text"));
    total_ += static_cast<double>(c * documents_.back()) * policies;
  }
  return absl::OkStatus();
}

absl::Status Comparison::MakeKeys(const std::string& model_path) {
  if (o_.resume.empty()) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const uint64_t model, HashFile(model_path));
  const uint64_t text =
      HashText({reinterpret_cast<const char*>(tokens_.data()), tokens_.size() * sizeof(int32_t)});
  const std::string all = absl::StrCat(
      absl::Hex(model), "-", absl::Hex(text), "-", o_.seed, "-", o_.perplexity, o_.facts, "-",
      o_.facts_each, "-", DTypeName(o_.engine.cache), "-", o_.engine.chunk, "-",
      absl::Hex(
          HashText(absl::StrJoin({o_.wording.statement, o_.wording.question, o_.wording.answer},
                                 absl::string_view("\0", 1)))),
      o_.foretell ? "-foretold" : "",
      o_.quality_stride > 0 ? absl::StrCat("-quality", o_.quality_stride) : "");
  for (const std::string& policy : o_.policies) {
    const auto own = host::PolicyFingerprint(policy);
    if (!own.ok()) return Named(policy, own.status());
    keys_[policy] = absl::StrCat(all, "-", absl::Hex(*own));
  }
  return absl::OkStatus();
}

absl::Status Comparison::ReadFinished() {
  if (o_.resume.empty() || !std::filesystem::exists(o_.resume)) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(o_.resume));
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    // A line cut short by an interruption is measured again.
    const json j = json::parse(line.begin(), line.end(), nullptr, false);
    try {
      if (!j.is_object()) continue;
      auto d = j.get<CompareDocument>();
      const auto key = keys_.find(d.policy);
      if (key != keys_.end() && j.at("key") == key->second)
        known_[{d.policy, d.context, d.document}] = std::move(d);
    } catch (const json::exception&) {
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<host::FactPrompt>> Comparison::Prompts(int64_t context,
                                                                  int64_t documents) const {
  std::vector<host::FactPrompt> prompts;
  for (int64_t d = 0; d < documents; ++d) {
    const std::vector<int32_t> text(tokens_.begin() + d * context,
                                    tokens_.begin() + (d + 1) * context);
    if (!o_.facts) {
      prompts.push_back({.tokens = text,
                         .answer = std::vector<uint8_t>(text.size(), 0),
                         .text = std::vector<uint8_t>(text.size(), 1),
                         .facts = {}});
      continue;
    }
    const uint64_t seed = o_.seed * 1000003 + static_cast<uint64_t>(d);
    SLUICE_ASSIGN_OR_RETURN(host::FactPrompt p,
                            PlantFacts(model_, text, context, o_.facts_each, seed, o_.wording));
    prompts.push_back(std::move(p));
  }
  return prompts;
}

absl::Status Comparison::RunPolicy(const std::string& policy, int64_t context,
                                   const std::vector<host::FactPrompt>& prompts) {
  Measured m;
  for (int64_t d = 0; d < std::ssize(prompts); ++d) {
    const auto at = known_.find({policy, context, d});
    if (at != known_.end()) {
      done_.push_back(at->second);
      spent_ += static_cast<double>(context);
      continue;
    }
    if (o_.foretell && !clock_.has_value()) {
      Say("calibrating the cost model", spent_ / total_);
      SLUICE_ASSIGN_OR_RETURN(clock_, AttentionClock::Create(model_, o_.engine));
    }
    if (m.engine == nullptr) SLUICE_RETURN_IF_ERROR(MakeEngine(policy, context, m));
    Say(absl::StrCat(policy, " at ", ContextName(context), ", document ", d + 1, "/",
                     prompts.size()),
        spent_ / total_);
    if (clock_.has_value()) SLUICE_RETURN_IF_ERROR(clock_->Probe());
    SLUICE_ASSIGN_OR_RETURN(CompareDocument r, Measure(policy, context, prompts[d], m));
    r.document = d;
    SLUICE_RETURN_IF_ERROR(Keep(r));
    done_.push_back(std::move(r));
    spent_ += static_cast<double>(context);
  }
  return absl::OkStatus();
}

absl::Status Comparison::MakeEngine(const std::string& policy, int64_t context, Measured& m) {
  host::EngineOptions e = o_.engine;
  e.max_tokens = context;
  e.quality_stride = o_.quality_stride;
  e.quality_errors = o_.quality_stride > 0;
  e.on_plan = [this, &m](int64_t, const AttentionPlan& plan, double) {
    if (clock_.has_value()) m.predicted_s += clock_->Seconds(plan);
    m.listed->Add(plan);
  };
  auto made = host::CreateWithPolicy(model_, e, policy);
  if (!made.ok()) return Named(policy, made.status());
  m.engine = *std::move(made);
  return absl::OkStatus();
}

absl::StatusOr<CompareDocument> Comparison::Measure(const std::string& policy, int64_t context,
                                                    const host::FactPrompt& prompt, Measured& m) {
  m.predicted_s = 0;
  m.listed.emplace(model_.shape.kv_heads, context);
  host::Engine& engine = *m.engine;
  const auto score = host::ScoreMarked(engine, prompt.tokens, prompt.answer, prompt.text);
  if (!score.ok()) return Named(policy, score.status());
  CompareDocument r;
  r.policy = policy;
  r.context = context;
  if (o_.perplexity) {
    r.nll = score->nll;
    r.counted = score->counted;
  }
  r.right = score->right;
  r.asked = score->asked;
  const AttentionCounters& c = engine.counters();
  const auto layers = static_cast<double>(model_.shape.layers);
  r.exact_pairs = static_cast<double>(c.exact_pairs);
  r.attention_macs = static_cast<double>(c.macs);
  // Dense pairs of the whole text, also where a policy leaves tokens out.
  const double n = static_cast<double>(prompt.tokens.size());
  r.causal_pairs = n * (n + 1) / 2 * static_cast<double>(model_.shape.heads) * layers;
  r.kv_bytes = static_cast<double>(c.kv_bytes);
  r.linear_macs = static_cast<double>(engine.linear().macs);
  r.weight_bytes = static_cast<double>(engine.linear().weight_bytes);
  r.total_s = engine.timing().total_s;
  r.plan_s = engine.timing().plan_s;
  r.attend_s = engine.timing().attend_s;
  r.predicted_attend_s = m.predicted_s;
  for (int64_t l = 0; l < model_.shape.layers; ++l)
    r.layer_density.push_back(static_cast<double>(engine.layer_counters(l).exact_pairs) /
                              (r.causal_pairs / layers));
  for (int64_t l = 0; l < model_.shape.layers; ++l)
    r.layer_attention_s.push_back(engine.attention_seconds(l));
  const PlanQuality& quality = engine.quality();
  if (quality.mass_recall.count() > 0) {
    r.mass_recall = quality.mass_recall.mean();
    r.mass_recall_p5 = quality.mass_recall.quantile(0.05);
    r.mass_recall_min = quality.mass_recall.min();
    r.rel_error = quality.rel_error.mean();
  }
  r.head_density = m.listed->HeadDensity();
  r.block_map = m.listed->BlockMap();
  return r;
}

absl::Status Comparison::Keep(const CompareDocument& d) const {
  if (o_.resume.empty()) return absl::OkStatus();
  std::ofstream f(o_.resume, std::ios::app);
  json line = d;
  line["key"] = keys_.at(d.policy);
  f << line.dump() << "\n";
  f.close();
  return f ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", o_.resume));
}
}  // namespace

std::string ContextName(int64_t tokens) {
  return tokens % 1024 == 0 ? absl::StrCat(tokens / 1024, "k") : absl::StrCat(tokens);
}

absl::StatusOr<std::vector<CompareDocument>> RunComparison(const host::Model& model,
                                                           const std::string& model_path,
                                                           const std::vector<int32_t>& tokens,
                                                           const CompareOptions& options) {
  return Comparison(model, tokens, options).Run(model_path);
}
}  // namespace lab
SLUICE_END_NAMESPACE
