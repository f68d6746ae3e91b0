#ifndef SLUICE_RUNTIME_LAB_FACTS_FILE_H_
#define SLUICE_RUNTIME_LAB_FACTS_FILE_H_
// Which facts are planted, as a user says it: how many, and in which words.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/facts.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
inline constexpr int64_t kMostFacts = 16;  // a prompt: each has a noun of its own

// A file of JSON, all three texts and nothing else:
//   {"statement": " {name} opens with {code}.", "question": " {name} opens with", "answer": "
//   {code}"}
// InvalidArgument, with what is allowed, for another form: a statement must hold {name} and {code},
// a question {name} and no {code}, which would tell the answer, and an answer {code}; other braces
// are refused.
absl::StatusOr<host::FactWording> ReadFactWording(const std::string& path);

struct FactChoice {
  int64_t count = 0;
  host::FactWording wording;
};
// From what was given: a number of facts from `least` to 16, a file of their wording, or both; and
// `spaces`, which is a wording too. What is not given stays as in `choice`.
absl::Status ReadFactChoice(const std::vector<std::string>& given, int64_t least, bool spaces,
                            FactChoice& choice);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_FACTS_FILE_H_
