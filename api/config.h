#ifndef SLUICE_API_CONFIG_H_
#define SLUICE_API_CONFIG_H_
// A config is a plain struct with one VisitFields method; reading, range errors, help text and
// printing all come from that declaration:
//
//   struct Config {
//     int64_t k = 16;
//     template <class V> void VisitFields(V&& v) { v("k", k, Range<int64_t>{1, 65536}, "blocks kept
//     per query tile"); }
//   };
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
using KeyValue = std::pair<absl::string_view, absl::string_view>;

template <class T>
struct Range {
  T lo, hi;
};
// Free text of so many characters at most; commas end it, and bars and parentheses are the
// compositions'.
struct Text {
  size_t most = 0;
};
// Names of an enum's values, the first for 0.
struct Choices {
  Choices(std::initializer_list<absl::string_view> n) : names(n) {}
  std::initializer_list<absl::string_view> names;
  std::string Joined(absl::string_view separator) const { return absl::StrJoin(names, separator); }
};

namespace config_internal {
inline bool Parse(absl::string_view t, int64_t* v) { return absl::SimpleAtoi(t, v); }
inline bool Parse(absl::string_view t, double* v) {
  return absl::SimpleAtod(t, v) && !std::isnan(*v);
}
inline bool Parse(absl::string_view t, bool* v) { return absl::SimpleAtob(t, v); }

inline std::string Print(int64_t v) { return absl::StrCat(v); }
inline std::string Print(bool v) { return v ? "true" : "false"; }
inline std::string Print(double v) {  // shortest text that reads back to the same value
  std::string s = absl::StrCat(v);
  double back = 0;
  if (!absl::SimpleAtod(s, &back) || back != v) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.17g", v);
    s = buffer;
  }
  return s;
}

inline std::string Print(const std::vector<double>& v) {
  return absl::StrJoin(v, "/", [](std::string* out, double x) { absl::StrAppend(out, Print(x)); });
}

struct Setter {
  absl::string_view key, text;
  bool found = false;
  absl::Status status;
  std::string known;
  template <class T>
  void operator()(absl::string_view name, T& field, Range<T> range, absl::string_view /*doc*/) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    if (name != key) return;
    found = true;
    T v{};
    if (!Parse(text, &v)) {
      status = absl::InvalidArgumentError(absl::StrCat(key, ": cannot read '", text, "' as ",
                                                       std::is_same_v<T, bool> ? "true or false"
                                                       : std::is_integral_v<T> ? "an integer"
                                                                               : "a number"));
    } else if (v < range.lo || range.hi < v) {
      status = absl::OutOfRangeError(absl::StrCat(key, "=", text, " is outside [", Print(range.lo),
                                                  ", ", Print(range.hi), "]"));
    } else {
      field = v;
    }
  }
  // A list of numbers, as "1/0.5/2"; empty text is the empty list.
  void operator()(absl::string_view name, std::vector<double>& field, Range<double> range,
                  absl::string_view /*doc*/) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    if (name != key) return;
    found = true;
    std::vector<double> read;
    for (absl::string_view item : absl::StrSplit(text, '/', absl::SkipEmpty())) {
      double v = 0;
      if (!Parse(item, &v)) {
        status = absl::InvalidArgumentError(
            absl::StrCat(key, ": cannot read '", item, "' of '", text, "' as a number"));
        return;
      }
      if (v < range.lo || range.hi < v) {
        status = absl::OutOfRangeError(absl::StrCat(key, "=", text, ": ", item, " is outside [",
                                                    Print(range.lo), ", ", Print(range.hi), "]"));
        return;
      }
      read.push_back(v);
    }
    field = std::move(read);
  }
  void operator()(absl::string_view name, std::string& field, Text limit,
                  absl::string_view /*doc*/) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    if (name != key) return;
    found = true;
    if (text.size() > limit.most) {
      status = absl::OutOfRangeError(
          absl::StrCat(key, " has ", text.size(), " characters, at most ", limit.most));
    } else {
      field = std::string(text);
    }
  }
  template <class E>
  void operator()(absl::string_view name, E& field, Choices choices, absl::string_view /*doc*/) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    if (name != key) return;
    found = true;
    const auto* at = std::find(choices.names.begin(), choices.names.end(), text);
    if (at == choices.names.end()) {
      status = absl::InvalidArgumentError(
          absl::StrCat(key, ": '", text, "' is not one of ", choices.Joined(", ")));
    } else {
      field = static_cast<E>(at - choices.names.begin());
    }
  }
};
struct Describer {
  std::string* out;
  void operator()(absl::string_view name, std::vector<double>& field, Range<double> range,
                  absl::string_view doc) {
    absl::StrAppend(out, "  ", name, "=", Print(field), "  a list a/b/.. of [", Print(range.lo),
                    ", ", Print(range.hi), "]  ", doc, "\n");
  }
  template <class T>
  void operator()(absl::string_view name, T& field, Range<T> range, absl::string_view doc) {
    absl::StrAppend(out, "  ", name, "=", Print(field), "  [", Print(range.lo), ", ",
                    Print(range.hi), "]  ", doc, "\n");
  }
  void operator()(absl::string_view name, std::string& field, Text /*limit*/,
                  absl::string_view doc) {
    absl::StrAppend(out, "  ", name, "=", field, "  ", doc, "\n");
  }
  template <class E>
  void operator()(absl::string_view name, E& field, Choices choices, absl::string_view doc) {
    absl::StrAppend(out, "  ", name, "=", choices.names.begin()[static_cast<size_t>(field)], "  {",
                    choices.Joined(", "), "}  ", doc, "\n");
  }
};
struct Printer {
  std::string* out;
  void operator()(absl::string_view name, std::vector<double>& field, Range<double> /*range*/,
                  absl::string_view /*doc*/) {
    absl::StrAppend(out, out->empty() ? "" : ",", name, "=", Print(field));
  }
  template <class T>
  void operator()(absl::string_view name, T& field, Range<T> /*range*/, absl::string_view /*doc*/) {
    absl::StrAppend(out, out->empty() ? "" : ",", name, "=", Print(field));
  }
  void operator()(absl::string_view name, std::string& field, Text /*limit*/,
                  absl::string_view /*doc*/) {
    absl::StrAppend(out, out->empty() ? "" : ",", name, "=", field);
  }
  template <class E>
  void operator()(absl::string_view name, E& field, Choices choices, absl::string_view /*doc*/) {
    absl::StrAppend(out, out->empty() ? "" : ",", name, "=",
                    choices.names.begin()[static_cast<size_t>(field)]);
  }
};
}  // namespace config_internal

// Fills `config` from text. A key that no field claims is an error that lists the known keys;
// `config` is unchanged when the result is not OK.
template <class Config>
absl::Status ReadConfig(absl::Span<const KeyValue> kvs, Config& config) {
  Config read = config;
  for (const auto& [key, text] : kvs) {
    config_internal::Setter set{key, text, false, absl::OkStatus(), {}};
    read.VisitFields(set);
    if (!set.found) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown key '", key, "'; known: ", set.known.empty() ? "(none)" : set.known));
    }
    if (!set.status.ok()) return set.status;
  }
  config = read;
  return absl::OkStatus();
}

// One line a field: name=default [range] meaning.
template <class Config>
std::string DescribeConfig() {
  std::string out;
  Config c;
  c.VisitFields(config_internal::Describer{&out});
  return out;
}

// "a=1,b=true": reads back through ParseSpec and ReadConfig to an equal config.
template <class Config>
std::string PrintConfig(Config config) {
  std::string out;
  config.VisitFields(config_internal::Printer{&out});
  return out;
}

// "name" or "name:key=value,key=value", as typed on a command line. The views point into `text`.
struct Spec {
  absl::string_view name;
  std::vector<KeyValue> options;
};
inline absl::StatusOr<Spec> ParseSpec(absl::string_view text) {
  Spec spec;
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  spec.name = absl::StripAsciiWhitespace(parts.first);
  if (spec.name.empty())
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' names no method"));
  if (parts.second.empty()) return spec;
  for (absl::string_view item : absl::StrSplit(parts.second, ',')) {
    const size_t eq = item.find('=');
    if (eq == absl::string_view::npos || eq == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", item, "' in '", text, "' is not key=value"));
    }
    spec.options.emplace_back(absl::StripAsciiWhitespace(item.substr(0, eq)),
                              absl::StripAsciiWhitespace(item.substr(eq + 1)));
  }
  return spec;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_CONFIG_H_
