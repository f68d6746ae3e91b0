#ifndef SLUICE_RUNTIME_LAB_ENCODER_H_
#define SLUICE_RUNTIME_LAB_ENCODER_H_
// The encoder's commands: what a query is about, and an encoder cut by SHRP.
#include <string>

#include "absl/status/status.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Prints the three likeliest labels of `text` with their probabilities.
absl::Status Classify(const std::string& encoder, const std::string& text);
// Writes `encoder` with the layers of `conversion` in place of its own, as a model that stands
// alone.
absl::Status PruneEncoder(const std::string& encoder, const std::string& conversion,
                          const std::string& out);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_ENCODER_H_
