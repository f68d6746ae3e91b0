#ifndef SLUICE_RUNTIME_LAB_EVALUATE_ATTENTION_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_ATTENTION_H_
// Every attention policy on one model and on planted data, between two anchors: an oracle that
// knows the probabilities, and the first and last keys alone.
#include <string>
#include <vector>

#include "sluice/runtime/lab/compare/compare.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct EvaluateAttentionOptions {
  double perplexity = 1;   // % that a policy may lose to be named the fastest,
  double facts = 3;        // and points
  int64_t planted = 4096;  // keys of the planted data; 0: none
  CompareOptions compare;  // policies, of which the first is the baseline; empty: all that can run
};
// The policies that are tried where none were given: dense, the anchors, those that keep facts, and
// every other registered method that needs no weights, as its defaults have it.
std::vector<std::string> AttentionPolicies();
// The answer first: for every context the policy of the least attention time, planning included,
// within the limits; then tables with their Pareto fronts, planted data, charts. A policy that
// cannot run on this model stands in the notes with the reason.
absl::StatusOr<Report> EvaluateAttention(const host::Model& model, const std::string& model_path,
                                         const std::vector<int32_t>& tokens,
                                         const EvaluateAttentionOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_ATTENTION_H_
