#ifndef SLUICE_API_METHOD_KEYS_H_
#define SLUICE_API_METHOD_KEYS_H_
// Options that a host gives a method whose text does not.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"

SLUICE_BEGIN_NAMESPACE
struct AddedKey {
  std::string key;
  std::string value;
  bool optional = false;  // only where the method has such a key
};

// Whether a method's help (Factory::Describe), one line a key, speaks of this one.
inline bool HelpNames(absl::string_view help, absl::string_view key) {
  const std::vector<absl::string_view> lines = absl::StrSplit(help, '\n');
  return std::any_of(lines.begin(), lines.end(), [&](absl::string_view line) {
    return absl::StartsWith(absl::StripLeadingAsciiWhitespace(line), absl::StrCat(key, "="));
  });
}

// `text` ("name:key=value,...") with the keys that it does not give itself. An error where the text
// cannot be read.
inline absl::StatusOr<std::string> WithKeys(const std::string& text, absl::string_view help,
                                            const std::vector<AddedKey>& keys) {
  SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(text));
  std::string full = text;
  bool first = spec.options.empty();
  for (const AddedKey& k : keys) {
    const bool given = std::any_of(spec.options.begin(), spec.options.end(),
                                   [&](const KeyValue& option) { return option.first == k.key; });
    if (given || (k.optional && !HelpNames(help, k.key))) continue;
    absl::StrAppend(&full, first ? ":" : ",", k.key, "=", k.value);
    first = false;
  }
  return full;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_METHOD_KEYS_H_
