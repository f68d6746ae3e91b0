#ifndef SLUICE_RUNTIME_HOST_FACTS_H_
#define SLUICE_RUNTIME_HOST_FACTS_H_
// Prompts whose answers are known.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "sluice/runtime/text/tokenizer.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// How a fact is said, asked and answered, since a model answers in the words that it has learned;
// here those of the bundled model. {name} and {code} stand for the fact's own.
struct FactWording {
  static constexpr const char* kName = "{name}";
  static constexpr const char* kCode = "{code}";
  std::string statement = "\nThe code of the {name} is {code}.\n";
  std::string question = "\nQuestion: what is the code of the {name}? Answer:";
  std::string answer = " {code}";

  std::string Statement(const std::string& name, const std::string& code) const;
  std::string Question(const std::string& name) const;
  std::string Answer(const std::string& name, const std::string& code) const;
};
// The words above, with spaces in place of line breaks.
FactWording WordingWithSpaces();

// Documentation text with planted facts, as the bundled model was trained on: statements at spread
// depths, questions with their answers at the end. Every token of an answer is asked for.
struct FactPrompt {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> answer, text;                       // marks: answer tokens; plain text
  std::vector<std::pair<std::string, std::string>> facts;  // name, code; in the order asked
};
// Tokens before the first that is marked as an answer: all that a decision may see. All of them
// where none is marked.
inline int64_t BeforeAnswers(const std::vector<uint8_t>& answer) {
  return std::find(answer.begin(), answer.end(), 1) - answer.begin();
}
FactPrompt PlantFacts(const Tokenizer& tokenizer, const std::vector<int32_t>& text, int64_t length,
                      int64_t count, uint64_t seed, const FactWording& wording = {});
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_FACTS_H_
