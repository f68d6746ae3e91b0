#include "sluice/runtime/lab/evaluate/attention.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "sluice/api/check.h"
#include "sluice/policies/common/bootstrap.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/totals.h"
#include "sluice/runtime/lab/evaluate/planted.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
// One policy at one context, all documents together.
struct Row {
  std::string policy;
  Totals quality;
  Work work;
  double mass = 0, mass_p5 = 0, mass_min = 1, error = 0, documents = 0;

  void Add(const CompareDocument& d) {
    quality.Add(d);
    work.Add(d);
    mass += d.mass_recall;
    mass_p5 += d.mass_recall_p5;
    mass_min = std::min(mass_min, d.mass_recall_min);
    error += d.rel_error;
    ++documents;
  }
  double attention_s() const { return work.plan + work.attend; }
  double rise(const Row& base) const {
    return 100 * (quality.perplexity() / base.quality.perplexity() - 1);
  }
  double points(const Row& base) const {
    return 100 * (quality.accuracy() - base.quality.accuracy());
  }
};

bool IsAnchor(const std::string& policy) {
  return absl::StartsWith(policy, "oracle_block_topk") || absl::StartsWith(policy, "sink_window");
}

class AttentionReport {
 public:
  explicit AttentionReport(const EvaluateAttentionOptions& o) : o_(o) {}
  Report Make(const std::vector<CompareDocument>& documents,
              const std::vector<std::string>& policies) {
    answer_.title =
        absl::StrFormat("Which policy is fastest within %g %% perplexity and %g points of facts?",
                        o_.perplexity, o_.facts);
    answer_.note =
        "By measured attention time, planning included, on these documents; no interval is taken "
        "here: `sluice compare` has them. The oracle is no candidate.";
    answer_.columns = {{"tokens", -1},       {"policy", -1},      {"attention speed", 2},
                       {"prefill speed", 2}, {"perplexity %", 2}, {"facts points", 1}};
    report_.tables.resize(1);
    for (int64_t context : o_.compare.contexts) AddContext(context, documents, policies);
    report_.tables[0] = answer_;
    report_.charts = {quality_, mass_};
    report_.notes = absl::StrCat(absl::StrJoin(said_, ". "), ".");
    return std::move(report_);
  }

 private:
  void AddContext(int64_t context, const std::vector<CompareDocument>& documents,
                  const std::vector<std::string>& policies) {
    std::vector<Row> rows;
    for (const std::string& policy : policies) {
      Row row{.policy = policy};
      for (const CompareDocument& d : documents) {
        if (d.policy == policy && d.context == context) row.Add(d);
      }
      rows.push_back(row);
    }
    Answer(context, rows);
    AddTable(context, rows);
    AddSeries(context, rows);
  }

  void Answer(int64_t context, const std::vector<Row>& rows) {
    const Row& base = rows[0];
    const Row* best = &base;
    for (const Row& r : rows) {
      const bool keeps = r.rise(base) <= o_.perplexity && r.points(base) >= -o_.facts;
      const bool candidate = !absl::StartsWith(r.policy, "oracle_");
      if (keeps && candidate && r.attention_s() < best->attention_s()) best = &r;
    }
    const double speed = base.attention_s() / best->attention_s();
    answer_.rows.push_back({{ContextName(context)},
                            {best->policy},
                            {"", speed},
                            {"", base.work.seconds / best->work.seconds},
                            {"", best->rise(base)},
                            {"", best->points(base)}});
    said_.push_back(
        absl::StrFormat("At %s tokens the fastest policy within %g %% perplexity and "
                        "%g points of facts is %s, attention %.2fx",
                        ContextName(context), o_.perplexity, o_.facts, best->policy, speed));
  }

  void AddTable(int64_t context, const std::vector<Row>& rows) {
    ReportTable t;
    t.title = absl::StrCat(ContextName(context), " tokens");
    t.note =
        "Marked rows: no other has both less attention time and better perplexity or facts. mass: "
        "dense probability that the listed keys carry; error: |o - o dense| / |o dense|; both over "
        "a sample of queries.";
    t.columns = {{"policy", -1},   {"density", 3},    {"mass", 3},     {"mass p5", 3},
                 {"mass min", 3},  {"error", 3},      {"plan s", 2},   {"attend s", 2},
                 {"attention", 2}, {"perplexity", 3}, {"change %", 2}, {"facts", 3},
                 {"points", 1}};
    std::vector<Tradeoff> by_perplexity;
    std::vector<Tradeoff> by_facts;
    for (const Row& r : rows) {
      const double n = r.documents;
      t.rows.push_back({{r.policy},
                        {"", r.work.density()},
                        {"", r.mass / n},
                        {"", r.mass_p5 / n},
                        {"", r.mass_min},
                        {"", r.error / n},
                        {"", r.work.plan / n},
                        {"", r.work.attend / n},
                        {"", rows[0].attention_s() / r.attention_s()},
                        {"", r.quality.perplexity()},
                        {"", r.rise(rows[0])},
                        {"", r.quality.accuracy()},
                        {"", r.points(rows[0])}});
      by_perplexity.push_back({r.attention_s(), -r.quality.perplexity()});
      by_facts.push_back({r.attention_s(), r.quality.accuracy()});
    }
    const std::vector<bool> one = ParetoFront(by_perplexity);
    const std::vector<bool> two = ParetoFront(by_facts);
    for (size_t i = 0; i < rows.size(); ++i) t.marked.push_back(one[i] || two[i]);
    report_.tables.push_back(std::move(t));
  }

  // Anchors are the frame: grey.
  void AddSeries(int64_t context, const std::vector<Row>& rows) {
    const std::string name = ContextName(context);
    ReportChart::Series anchors{.name = "anchors", .quiet = true};
    ReportChart::Series anchors_mass = anchors;
    ReportChart::Series others{.name = name};
    ReportChart::Series others_mass = others;
    for (const Row& r : rows) {
      const std::string label = absl::StrCat(r.policy, ", ", name);
      const double seconds = r.attention_s() / r.documents;
      auto& quality = IsAnchor(r.policy) ? anchors : others;
      auto& mass = IsAnchor(r.policy) ? anchors_mass : others_mass;
      quality.points.push_back({.x = seconds, .y = r.rise(rows[0]), .label = label});
      mass.points.push_back({.x = r.work.density(), .y = r.mass / r.documents, .label = label});
    }
    quality_.series.push_back(std::move(anchors));
    quality_.series.push_back(std::move(others));
    mass_.series.push_back(std::move(anchors_mass));
    mass_.series.push_back(std::move(others_mass));
  }

  const EvaluateAttentionOptions& o_;
  Report report_;
  ReportTable answer_;
  std::vector<std::string> said_;
  ReportChart quality_{.title = "Perplexity against attention time",
                       .x = "attention and planning, s a document",
                       .y = "perplexity, change in %",
                       .log_x = true,
                       .series = {}};
  ReportChart mass_{.title = "Mass recall against density",
                    .x = "density, measured",
                    .y = "dense probability attended",
                    .log_x = true,
                    .series = {}};
};

// One table a kind of planted data.
void AddPlanted(const EvaluateAttentionOptions& o, const std::vector<std::string>& policies,
                Report& report) {
  constexpr int64_t kStride = 97;
  for (size_t kind = 0; kind < std::size(kPlantedKinds); ++kind) {
    const PlantedData data =
        MakePlanted(static_cast<PlantedKind>(kind), o.planted, o.planted, o.compare.seed);
    ReportTable t;
    t.title = absl::StrCat("Planted: ", kPlantedKinds[kind], ", ", o.planted, " keys");
    t.columns = {{"policy", -1},  {"density", 3}, {"mass", 3},   {"mass p5", 3},
                 {"mass min", 3}, {"error", 3},   {"plan s", 3}, {"attend s", 3}};
    std::vector<Tradeoff> points;
    for (const std::string& policy : policies) {
      if (o.compare.progress)
        o.compare.progress(absl::StrCat(policy, ", planted ", kPlantedKinds[kind]), 0.99);
      const auto r = RunPlanted(data, policy,
                                {.quality_stride = kStride, .threads = o.compare.engine.threads});
      if (!r.ok()) continue;  // one that needs what planted data has not
      const PlanQuality& q = r->quality;
      t.rows.push_back({{policy},
                        {"", r->density},
                        {"", q.mass_recall.mean()},
                        {"", q.mass_recall.quantile(0.05)},
                        {"", q.mass_recall.min()},
                        {"", q.rel_error.mean()},
                        {"", r->plan_s},
                        {"", r->attend_s}});
      points.push_back({r->plan_s + r->attend_s, -q.rel_error.mean()});
    }
    t.marked = ParetoFront(points);
    t.note = "Marked rows: no other has both less attention time and less error.";
    report.tables.push_back(std::move(t));
  }
}
}  // namespace

std::vector<std::string> AttentionPolicies() {
  std::vector<std::string> all = {
      "dense",
      "oracle_block_topk:k=16",
      "oracle_block_topk:k=64",
      "sink_window:window=512",
      "sink_window:window=2048",
      "seer_attention:gate=identity,block=32,density=0.14,dense_tail=12",
      "mean_pool:k=16",
      "mean_pool:k=32"};
  const FactoryMap<AttentionRouter>& methods = InstalledMethods().registry.attention;
  for (const auto& [name, method] : methods) {
    const std::string bare = name.substr(name.rfind('/') + 1);
    const bool there = std::any_of(all.begin(), all.end(), [&](const std::string& p) {
      return p == bare || absl::StartsWith(p, bare + ":");
    });
    if (!there && methods.Create(name).ok()) all.push_back(bare);
  }
  return all;
}

absl::StatusOr<Report> EvaluateAttention(const host::Model& model, const std::string& model_path,
                                         const std::vector<int32_t>& tokens,
                                         const EvaluateAttentionOptions& options) {
  EvaluateAttentionOptions o = options;
  const bool given = !o.compare.policies.empty();
  std::vector<std::string> wanted = given ? o.compare.policies : AttentionPolicies();
  for (const std::string& name : host::LearnedPolicies(model)) {
    if (!given && InstalledMethods().registry.attention.Find(name).ok()) wanted.push_back(name);
  }
  o.compare.policies.clear();
  std::vector<std::string> refused;
  for (const std::string& policy : wanted) {
    host::EngineOptions e = o.compare.engine;
    e.max_tokens = 64;
    const auto made = host::CreateWithPolicy(model, e, policy);
    if (made.ok()) {
      o.compare.policies.push_back(policy);
    } else if (given) {
      return absl::Status(made.status().code(),
                          absl::StrCat("policy '", policy, "': ", made.status().message()));
    } else {
      refused.push_back(absl::StrCat(policy, " (", made.status().message(), ")"));
    }
  }
  o.compare.perplexity = true;
  o.compare.facts = true;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<CompareDocument> documents,
                          RunComparison(model, model_path, tokens, o.compare));
  Report report = AttentionReport(o).Make(documents, o.compare.policies);
  if (!refused.empty())
    absl::StrAppend(&report.notes, " Not run: ", absl::StrJoin(refused, "; "), ".");
  if (o.planted > 0) AddPlanted(o, o.compare.policies, report);
  return report;
}
}  // namespace lab
SLUICE_END_NAMESPACE
