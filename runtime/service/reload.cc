#include "sluice/runtime/service/reload.h"

#include <google/protobuf/util/message_differencer.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "sluice/runtime/service/experiment.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::util::MessageDifferencer;

// One line a field that differs.
std::vector<std::string> Differences(const Message& was, const Message& now) {
  std::string report;
  MessageDifferencer differ;
  differ.ReportDifferencesToString(&report);
  differ.Compare(was, now);
  std::vector<std::string> lines;
  for (absl::string_view line : absl::StrSplit(report, '\n', absl::SkipEmpty())) {
    absl::ConsumePrefix(&line, "modified: ");
    lines.emplace_back(line);
  }
  return lines;
}
// Gives `field` of `now` its old value where it differs, and says what waits.
void KeepOld(const Message& was, Message& now, const std::string& field, absl::string_view path,
             std::vector<std::string>& waits) {
  const FieldDescriptor* f = was.GetDescriptor()->FindFieldByName(field);
  std::unique_ptr<Message> old(was.New());
  std::unique_ptr<Message> given(was.New());
  const auto only = [&](const Message& from, Message& to) {
    to.CopyFrom(from);
    std::vector<const FieldDescriptor*> fields;
    to.GetReflection()->ListFields(to, &fields);
    for (const FieldDescriptor* other : fields) {
      if (other != f) to.GetReflection()->ClearField(&to, other);
    }
  };
  only(was, *old);
  only(now, *given);
  for (const std::string& line : Differences(*old, *given))
    waits.push_back(absl::StrCat(path, line));
  now.GetReflection()->ClearField(&now, f);
  now.MergeFrom(*old);
}
}  // namespace

absl::StatusOr<ReloadPlan> PlanReload(const ServerSettings& was, ServerSettings now) {
  const v1::ServerConfig& before = was.config;
  if (Reweights(before.experiment(), now.config.experiment()))
    return absl::FailedPreconditionError(
        absl::StrCat("experiment '", now.config.experiment().name(),
                     "': its arms or weights changed while it runs, which would move its units; "
                     "give the new split another name"));
  ReloadPlan plan;
  v1::ServerConfig& c = now.config;
  for (const char* field : {"endpoint", "state", "curve", "http"})
    KeepOld(before, c, field, "", plan.restarts);
  for (const char* field : {"window_epochs", "publish_ms", "snapshot_every", "commit_ms"})
    KeepOld(before.learning(), *c.mutable_learning(), field, "learning.", plan.restarts);
  KeepOld(before.limits(), *c.mutable_limits(), "max_message_bytes", "limits.", plan.restarts);
  plan.changes = Differences(before, c);
  plan.settings = std::make_shared<const ServerSettings>(std::move(now));
  return plan;
}

bool Reload::Start(const std::string& path, std::function<void()> done) {
  if (loading_.valid()) return false;
  loading_ = std::async(std::launch::async, [path, done = std::move(done)] {
    absl::StatusOr<ServerSettings> settings = LoadSettings(path);
    done();
    return settings;
  });
  return true;
}

std::optional<absl::StatusOr<ServerSettings>> Reload::Take() {
  if (!loading_.valid() || loading_.wait_for(std::chrono::seconds(0)) != std::future_status::ready)
    return std::nullopt;
  return loading_.get();
}
SLUICE_END_NAMESPACE
