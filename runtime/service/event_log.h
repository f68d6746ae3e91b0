#ifndef SLUICE_RUNTIME_SERVICE_EVENT_LOG_H_
#define SLUICE_RUNTIME_SERVICE_EVENT_LOG_H_
// What happens to a server, one JSON object a line.
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class EventLog {
 public:
  using Sink = std::function<void(const std::string& line)>;
  explicit EventLog(Sink sink) : sink_(std::move(sink)) {}  // empty: silent
  using Field = std::pair<absl::string_view, std::string>;
  // Bytes that are no UTF-8 are replaced.
  void Write(absl::string_view event, std::initializer_list<Field> fields) const;

 private:
  Sink sink_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EVENT_LOG_H_
