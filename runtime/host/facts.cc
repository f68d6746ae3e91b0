#include "sluice/runtime/host/facts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
std::string FactWording::Statement(const std::string& name, const std::string& code) const {
  return absl::StrReplaceAll(statement, {{kName, name}, {kCode, code}});
}
std::string FactWording::Question(const std::string& name) const {
  return absl::StrReplaceAll(question, {{kName, name}});
}
std::string FactWording::Answer(const std::string& name, const std::string& code) const {
  return absl::StrReplaceAll(answer, {{kName, name}, {kCode, code}});
}

FactWording WordingWithSpaces() {
  FactWording w;
  for (std::string* text : {&w.statement, &w.question}) absl::StrReplaceAll({{"\n", " "}}, text);
  return w;
}

FactPrompt PlantFacts(const Tokenizer& tokenizer, const std::vector<int32_t>& text, int64_t length,
                      int64_t count, uint64_t seed, const FactWording& wording) {
  static constexpr const char* kAdjectives[] = {
      "amber", "bright", "copper", "distant", "emerald", "golden", "hidden", "ivory",
      "lunar", "misty",  "noble",  "quiet",   "royal",   "silver", "velvet", "winter"};
  static constexpr const char* kNouns[] = {
      "anchor", "bridge", "castle", "compass", "dragon", "engine",  "falcon", "garden",
      "harbor", "island", "kettle", "lantern", "mirror", "orchard", "piano",  "violin"};
  FactPrompt f;
  std::vector<std::vector<int32_t>> said, asked, answered;
  int64_t extra = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t r = RandomBits({seed, 1, 0, 0, static_cast<uint64_t>(i)});
    const std::string name = absl::StrCat(kAdjectives[(r + static_cast<uint64_t>(i)) % 16], " ",
                                          kNouns[static_cast<uint64_t>(i) % 16]);
    const std::string code = absl::StrCat(10000 + (r >> 8) % 90000);
    f.facts.emplace_back(name, code);
    said.push_back(tokenizer.Encode(wording.Statement(name, code)));
    asked.push_back(tokenizer.Encode(wording.Question(name)));
    answered.push_back(tokenizer.Encode(wording.Answer(name, code)));
    extra +=
        static_cast<int64_t>(said.back().size() + asked.back().size() + answered.back().size());
  }
  const int64_t plain =
      std::max<int64_t>(0, std::min<int64_t>(length - extra, static_cast<int64_t>(text.size())));
  const auto push = [&](const std::vector<int32_t>& ids, bool is_answer, bool is_text) {
    for (int32_t id : ids) {
      f.tokens.push_back(id);
      f.answer.push_back(is_answer);
      f.text.push_back(is_text);
    }
  };
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t until =
        plain * (2 * i + 1) / (2 * count + 1);  // even depths, the last well before the end
    push({text.begin() + at, text.begin() + until}, false, true);
    at = until;
    push(said[i], false, false);
  }
  push({text.begin() + at, text.begin() + plain}, false, true);
  for (int64_t i = 0; i < count; ++i) {
    push(asked[i], false, false);
    push(answered[i], true, false);
  }
  return f;
}
}  // namespace host
SLUICE_END_NAMESPACE
