#ifndef SLUICE_RUNTIME_SERVICE_INTENT_H_
#define SLUICE_RUNTIME_SERVICE_INTENT_H_
// What a text is about: a distribution over the configured tasks.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class IntentModel {
 public:
  virtual ~IntentModel() = default;
  virtual const std::vector<std::string>& tasks() const = 0;
  // intent: [tasks]. An empty text gives the classes' prior, or all alike.
  virtual absl::Status Infer(absl::string_view text, absl::Span<double> intent) const = 0;
};
// A GGUF file of `sluice intent train`, or of a BERT-style encoder (dense, or pruned by SHRP).
// A label goes to the task of its name, or to the one that `labels` says; to "" on purpose: it is
// dropped and the rest renormalised. One that goes nowhere is an error, since its queries would be
// taken for others.
using IntentLabels = std::map<std::string, std::string>;
absl::StatusOr<std::unique_ptr<IntentModel>> LoadIntentModel(const std::string& path,
                                                             const std::vector<std::string>& tasks,
                                                             const IntentLabels& labels = {});
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_INTENT_H_
