#ifndef SLUICE_RUNTIME_LAB_COMPARE_COMPARE_H_
#define SLUICE_RUNTIME_LAB_COMPARE_COMPARE_H_
// Policies against each other over a grid of contexts: the same documents for all, quality with
// paired intervals, measured work, time beside the time that the cost model foretold.
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sluice/policies/common/quantile.h"
#include "sluice/policies/cost/roofline.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/lab/compare/listed.h"
#include "sluice/runtime/report/report.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct CompareOptions {
  std::vector<std::string> policies;  // the first is the baseline
  std::vector<int64_t> contexts;      // tokens of a document
  bool perplexity = true, facts = true;
  int64_t documents = 5;  // a context, fewer where the tokens do not reach
  int64_t facts_each = 16;
  host::FactWording wording;
  uint64_t seed = 1;           // of facts and bootstrap
  int64_t draws = 2000;        // of the bootstrap
  host::EngineOptions engine;  // cache, chunk, threads
  bool foretell =
      false;  // attention's time, by a cost model fitted before the first document that is measured
  int64_t quality_stride = 0;  // measure mass and errors of every so many queries; 0: not
  std::string resume;          // file of finished documents, appended to; "": none
  std::function<void(const std::string& what, double share)> progress;
};
// One policy on one document.
struct CompareDocument {
  std::string policy;
  int64_t context = 0, document = 0;
  double nll = 0;
  int64_t counted = 0, right = 0, asked = 0;
  double exact_pairs = 0, causal_pairs = 0, attention_macs = 0, kv_bytes = 0, linear_macs = 0,
         weight_bytes = 0;
  double total_s = 0, plan_s = 0, attend_s = 0, predicted_attend_s = 0;
  std::vector<double> layer_density,
      head_density;  // exact / causal pairs; heads: KV heads, all layers together
  std::vector<double> layer_attention_s;  // planning and attending
  // Where quality_stride says so: dense probability that listed keys carry, and relative errors.
  double mass_recall = 0, mass_recall_p5 = 0, mass_recall_min = 0, rel_error = 0;
  std::vector<double>
      block_map;  // [kMapBins, kMapBins] query by key, share of the pairs that a plan lists
};

// Foretells the time of attention in a model on this machine. Rates are fitted once, from a short
// prompt of random tokens under a few routers (some seconds); Probe asks how fast the machine is
// now, for machines that are shared.
class AttentionClock {
 public:
  static absl::StatusOr<AttentionClock> Create(const host::Model& model,
                                               const host::EngineOptions& options);
  absl::Status Probe();
  double Seconds(const AttentionPlan& plan) const;

 private:
  WorkShape shape_;
  MachineRates rates_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<host::Engine> probe_;
  std::unique_ptr<double[]>
      sums_;  // of the probe: measured, foretold at pace 1; the engine's callback points here
  std::vector<double> recent_;  // of the last probes
  double pace_ = 1;             // how much slower than when it was fitted
};

// "16k" for 16384.
std::string ContextName(int64_t tokens);
// Measures what `resume` lacks. A finished document counts as long as the model, the text, the
// options and what the policy computes with (PolicyFingerprint) are as they were, by content.
absl::StatusOr<std::vector<CompareDocument>> RunComparison(const host::Model& model,
                                                           const std::string& model_path,
                                                           const std::vector<int32_t>& tokens,
                                                           const CompareOptions& options);
// `times`: with wall-clock columns, which no two runs share.
Report MakeReport(const std::vector<CompareDocument>& documents, const CompareOptions& options,
                  const std::string& title, bool times);

// The best plan per layer among `palette` within `budget`, a share of the first palette entry's
// attention pairs, as a per_layer composition. Quality is the mean log-likelihood over `documents`
// of `context` tokens.
struct LayerSearchOptions {
  std::string method = "greedy";
  std::vector<std::string> palette;
  double budget = 0.3;
  int64_t context = 2048, documents = 2, evaluations = 80;
  uint64_t seed = 1;
  int64_t seeds = 3;  // of the search and its control; 1: no verdict
  host::EngineOptions engine;
  std::function<void(int64_t done)> progress;
};
struct LayerPlan {
  std::string policy;
  double perplexity = 0, density = 0;
  int64_t evaluations = 0;
};
// Layers of the same choice in a row are written once: per_layer(2*dense | 4*mean_pool:k=16).
std::string PerLayer(const std::vector<int>& plan, const std::vector<std::string>& palette);
// The best over the seeds of the search and of random search with as many evaluations, and what
// that says of the search; only the first of them for random search itself or one seed.
struct LayerSearch {
  LayerPlan found;
  std::optional<LayerPlan> random;
  std::string verdict;
};
absl::StatusOr<LayerSearch> SearchLayers(const host::Model& model,
                                         const std::vector<int32_t>& tokens,
                                         const LayerSearchOptions& options);

// The policy per layer of the least measured attention time, planning included, that keeps quality
// within limits of palette[0]. Times add up over layers: a layer's is the median over documents of
// what it took under each policy in all layers, so that one disturbed run decides nothing.
struct WithinOptions {
  std::vector<std::string> palette;  // the first is what the limits are counted from
  double perplexity = NAN;           // may rise by so many %; NAN: no limit
  double facts = NAN;                // may fall by so many points, in the search with one
                                     // standard error of the count more; NAN: no limit
  double margin = 0.2;               // share of the limits that the search leaves unused
  int64_t documents = 2;             // searched on; as many, and the next ones, verify
  int64_t evaluations = 32;          // of plans, of the search and of the control each
  int64_t verifications = 3;         // where a plan leaves the limits on other text the next safer
                                     // one is verified, so many in all
  CompareOptions compare;            // one context; facts, engine, seed, resume, progress
};
struct WithinPlan {
  std::string method, policy;
  int64_t evaluations = 0;
  int64_t verified = 0;  // plans, this one the last; where none kept the limits, the first of them
  double seconds = 0, reference_seconds = 0;  // of attention and planning, a document, foretold
  // On text that no choice has seen, against palette[0] on the same documents: log perplexity and
  // facts as changes in % and points (NAN: no limit was set), and the ratio of attention times.
  MeanInterval perplexity = {NAN, NAN, NAN};
  MeanInterval facts = {NAN, NAN, NAN};
  MeanInterval speed = {NAN, NAN, NAN};
  bool within = false;  // the verified changes themselves; an interval may reach beyond
};
// A share of `of` things that were counted, and where it is above 0 one standard error of the count
// more: 4 lost of 100 are 0.06.
double WithStandardError(double share, double of);
// "perplexity=1%,facts=3" into the limits; InvalidArgument with what is allowed.
absl::Status ReadWithin(const std::string& text, WithinOptions& options);
// The search's plan, then random search's. Resumes by `compare.resume`: what is known there is not
// measured again, times too, so that the search takes the same way.
absl::StatusOr<std::vector<WithinPlan>> SearchWithinLimits(const host::Model& model,
                                                           const std::string& model_path,
                                                           const std::vector<int32_t>& tokens,
                                                           const WithinOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_COMPARE_COMPARE_H_
