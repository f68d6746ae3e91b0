#include "sluice/runtime/weights/gguf_accepts.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

SLUICE_BEGIN_NAMESPACE
namespace {
std::string ToText(const GgufValue& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) return absl::StrCat(*i);
  if (const auto* d = std::get_if<double>(&value)) return absl::StrCat(*d);
  if (const auto* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  if (const auto* s = std::get_if<std::string>(&value)) return absl::StrCat("'", *s, "'");
  return "a list";
}
bool Number(const GgufValue& value, double& number) {
  if (const auto* i = std::get_if<int64_t>(&value)) number = static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(&value)) number = *d;
  return std::holds_alternative<int64_t>(value) || std::holds_alternative<double>(value);
}
bool Same(const GgufValue& a, const GgufValue& b) {
  double x = 0;
  double y = 0;
  if (Number(a, x) && Number(b, y)) return x == y;
  return a == b;
}
}  // namespace

GgufAccepts& GgufAccepts::Key(std::string key) {
  keys_[std::move(key)] = {};
  return *this;
}
GgufAccepts& GgufAccepts::KeyPrefix(std::string prefix) {
  prefixes_.push_back(std::move(prefix));
  return *this;
}
GgufAccepts& GgufAccepts::KeyIs(std::string key, std::vector<GgufValue> values) {
  keys_[std::move(key)] = std::move(values);
  return *this;
}
GgufAccepts& GgufAccepts::Tensor(std::string name) {
  tensors_.insert(std::move(name));
  return *this;
}

absl::Status GgufAccepts::CheckKeys(const Gguf& file, const std::string& prefix) const {
  for (const auto& [key, value] : file.values()) {
    if (!absl::StartsWith(key, prefix)) continue;
    const auto known = keys_.find(key);
    if (known == keys_.end()) {
      const auto begins = [&key = key](const std::string& p) { return absl::StartsWith(key, p); };
      if (std::any_of(prefixes_.begin(), prefixes_.end(), begins)) continue;
      return absl::UnimplementedError(absl::StrCat("the key '", key, "' (", ToText(value),
                                                   ") is not implemented; without it the model "
                                                   "would compute something else"));
    }
    const std::vector<GgufValue>& allowed = known->second;
    const auto same = [&value = value](const GgufValue& v) { return Same(v, value); };
    if (allowed.empty() || std::any_of(allowed.begin(), allowed.end(), same)) continue;
    const auto append = [](std::string* out, const GgufValue& v) { out->append(ToText(v)); };
    return absl::UnimplementedError(absl::StrCat(
        "'", key, "' is ", ToText(value), "; implemented: ", absl::StrJoin(allowed, ", ", append)));
  }
  return absl::OkStatus();
}
absl::Status GgufAccepts::CheckTensors(const Gguf& file) const {
  for (const auto& [name, tensor] : file.tensors()) {
    if (tensors_.count(name) == 0)
      return absl::UnimplementedError(
          absl::StrCat("the tensor '", name,
                       "' is not implemented; without it the model would compute something else"));
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
