#include "sluice/runtime/lab/facts_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "sluice/api/check.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using host::FactWording;
constexpr const char* kName = FactWording::kName;
constexpr const char* kCode = FactWording::kCode;

// One text of a wording: what it must hold, and what it may not.
absl::Status CheckText(const std::string& path, const std::string& key, const std::string& text,
                       bool name, bool code) {
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", key, " '", text, "' ", what...));
  };
  if (name && !absl::StrContains(text, kName)) return bad("lacks {name}");
  if (code && !absl::StrContains(text, kCode)) return bad("lacks {code}");
  if (key == "question" && absl::StrContains(text, kCode)) return bad("tells the answer: {code}");
  const std::string rest = absl::StrReplaceAll(text, {{kName, ""}, {kCode, ""}});
  const size_t brace = rest.find_first_of("{}");
  if (brace != std::string::npos)
    return bad("has another brace, at '", rest.substr(brace, 12), "'; allowed: {name} and {code}");
  return absl::OkStatus();
}

// Whether a number is meant, be it a wrong one, and no file.
bool LooksLikeNumber(const std::string& text) {
  double number = 0;
  return absl::SimpleAtod(text, &number);
}
}  // namespace

absl::StatusOr<FactWording> ReadFactWording(const std::string& path) {
  constexpr const char* kAllowed =
      "; allowed: a JSON object of the texts statement, question and answer";
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  const nlohmann::json j = nlohmann::json::parse(text, nullptr, false);
  if (!j.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": no JSON object", kAllowed));
  FactWording w;
  const std::pair<const char*, std::string*> fields[] = {
      {"statement", &w.statement}, {"question", &w.question}, {"answer", &w.answer}};
  for (const auto& [key, value] : j.items()) {
    const auto* field = std::find_if(std::begin(fields), std::end(fields),
                                     [&](const auto& f) { return f.first == key; });
    if (field == std::end(fields) || !value.is_string())
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": '", key, "' is no text of it", kAllowed));
    *field->second = value.get<std::string>();
  }
  if (j.size() != std::size(fields))
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", j.size(), " of three texts", kAllowed));
  SLUICE_RETURN_IF_ERROR(CheckText(path, "statement", w.statement, true, true));
  SLUICE_RETURN_IF_ERROR(CheckText(path, "question", w.question, true, false));
  SLUICE_RETURN_IF_ERROR(CheckText(path, "answer", w.answer, false, true));
  return w;
}

absl::Status ReadFactChoice(const std::vector<std::string>& given, int64_t least, bool spaces,
                            FactChoice& choice) {
  int numbers = 0;
  int files = 0;
  for (const std::string& text : given) {
    if (LooksLikeNumber(text)) {
      ++numbers;
      const bool number = absl::SimpleAtoi(text, &choice.count);
      if (!number || choice.count < least || choice.count > kMostFacts)
        return absl::OutOfRangeError(
            absl::StrCat("--facts: '", text, "' was given; allowed: ", least, " to ", kMostFacts,
                         " facts, or a file of their wording"));
      continue;
    }
    ++files;
    SLUICE_ASSIGN_OR_RETURN(choice.wording, ReadFactWording(text));
  }
  if (numbers > 1 || files > 1)
    return absl::InvalidArgumentError(
        absl::StrCat("--facts: ", numbers, " numbers and ", files,
                     " files were given; allowed: one number, one file of a wording, or both"));
  if (spaces && files > 0)
    return absl::InvalidArgumentError(
        "--spaces beside a file of a wording; allowed: one of them, the file says it all");
  if (spaces) choice.wording = host::WordingWithSpaces();
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
