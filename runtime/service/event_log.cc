#include "sluice/runtime/service/event_log.h"

#include <nlohmann/json.hpp>

#include "sluice/runtime/service/clock.h"

SLUICE_BEGIN_NAMESPACE
void EventLog::Write(absl::string_view event, std::initializer_list<Field> fields) const {
  if (!sink_) return;
  nlohmann::ordered_json line;
  line["unix_ms"] = UnixMs();
  line["event"] = std::string(event);
  for (const auto& [name, value] : fields) line[std::string(name)] = value;
  sink_(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}
SLUICE_END_NAMESPACE
