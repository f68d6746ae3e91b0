#ifndef SLUICE_RUNTIME_CLI_COMMAND_H_
#define SLUICE_RUNTIME_CLI_COMMAND_H_
// What every command needs: how it ends, and how it refuses a number.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
// A command leaves its exit status here.
using Exit = std::function<void(int)>;

// Says what went wrong; the exit status of a failure.
inline int Fail(const absl::Status& s) {
  std::fprintf(stderr, "error: %s\n", std::string(s.message()).c_str());
  return 1;
}
inline int Done(const absl::Status& s) { return s.ok() ? 0 : Fail(s); }

// Numbers from `low` to `high`. Unlike CLI::Range it refuses NaN, and says what was given.
template <class T>
CLI::Validator Allowed(T low, T high) {
  const std::string range = absl::StrCat(low, " to ", high);
  const auto check = [=](std::string& given) -> std::string {
    T value{};
    bool number = false;
    if constexpr (std::is_floating_point_v<T>) {
      number = absl::SimpleAtod(given, &value);
    } else {
      number = absl::SimpleAtoi(given, &value);
    }
    if (number && value >= low && value <= high) return "";
    return absl::StrCat("'", given, "' was given; allowed: ", range);
  };
  return CLI::Validator(check, range);
}
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_COMMAND_H_
