#include "sluice/runtime/service/allow_list.h"

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kKeyText = 40;

absl::StatusOr<std::vector<std::string>> ReadKeys(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<std::string> keys;
  std::string line;
  for (int n = 1; std::getline(file, line); ++n) {
    // Z85 uses '#' too, so a comment needs a line of its own.
    const std::string key(absl::StripAsciiWhitespace(line));
    if (key.empty() || (key[0] == '#' && key.size() != kKeyText)) continue;
    if (key.size() != kKeyText) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", n, ": a key of ", key.size(), " characters, wanted ", kKeyText));
    }
    keys.push_back(key);
  }
  return keys;
}

class AllowListImpl final : public AllowList {
 public:
  AllowListImpl(zmq::context_t& context, std::string path)
      : path_(std::move(path)), socket_(context, zmq::socket_type::rep) {}
  ~AllowListImpl() override {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  absl::Status Open() {
    SLUICE_RETURN_IF_ERROR(Load());
    socket_.set(zmq::sockopt::rcvtimeo, 100);
    socket_.set(zmq::sockopt::linger, 0);
    socket_.bind("inproc://zeromq.zap.01");
    thread_ = std::thread([this] { Loop(); });
    return absl::OkStatus();
  }

  bool Holds(const std::string& key) override {
    std::lock_guard lock(mutex_);
    return keys_.count(key) > 0;
  }
  // A file that is being rewritten badly keeps the old list: nobody is let in by a mistake.
  void Refresh() override {
    if (path_.empty()) return;
    std::lock_guard lock(mutex_);
    std::error_code error;
    if (std::filesystem::last_write_time(path_, error) != stamp_ && !error) (void)Load();
  }

 private:
  absl::Status Load() {
    if (path_.empty()) return absl::OkStatus();
    std::error_code error;
    stamp_ = std::filesystem::last_write_time(path_, error);
    SLUICE_ASSIGN_OR_RETURN(std::vector<std::string> keys, ReadKeys(path_));
    keys_ = std::set<std::string>(keys.begin(), keys.end());
    return absl::OkStatus();
  }
  // The key that may come in, "" in the clear; no value: nobody.
  std::optional<std::string> Admit(const std::vector<std::string>& frames) {
    if (frames.size() < 6) return std::nullopt;
    if (path_.empty()) return frames[5] == "NULL" ? std::optional<std::string>("") : std::nullopt;
    if (frames.size() < 7 || frames[5] != "CURVE" || frames[6].size() != 32) return std::nullopt;
    char text[kKeyText + 1];
    zmq_z85_encode(text, reinterpret_cast<const uint8_t*>(frames[6].data()), 32);
    return Holds(text) ? std::optional<std::string>(text) : std::nullopt;
  }
  void Loop() {
    while (!stop_) {
      // version, request id, domain, address, identity, mechanism, credentials
      std::vector<std::string> frames;
      zmq::message_t m;
      if (!socket_.recv(m)) continue;
      frames.push_back(m.to_string());
      while (socket_.get(zmq::sockopt::rcvmore) && socket_.recv(m)) frames.push_back(m.to_string());
      Refresh();
      const std::optional<std::string> key = Admit(frames);
      const std::string reply[] = {"1.0",
                                   frames.size() > 1 ? frames[1] : "",
                                   key ? "200" : "400",
                                   key ? "OK" : "not on the allow-list",
                                   key.value_or(""),
                                   ""};
      for (size_t i = 0; i < 6; ++i)
        socket_.send(zmq::buffer(reply[i]),
                     i < 5 ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }
  const std::string path_;
  zmq::socket_t socket_;
  std::mutex mutex_;  // guards what was read of the file
  std::set<std::string> keys_;
  std::filesystem::file_time_type stamp_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};
}  // namespace

absl::StatusOr<CurveKeys> NewCurveKeys() {
  char public_key[kKeyText + 1], secret[kKeyText + 1];
  if (zmq_curve_keypair(public_key, secret) != 0)
    return absl::UnimplementedError("this libzmq has no CURVE");
  return CurveKeys{public_key, secret};
}
absl::StatusOr<CurveKeys> ReadSecretKey(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string> keys, ReadKeys(path));
  if (keys.empty())
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds no key; sluice keygen makes one"));
  char public_key[kKeyText + 1];
  if (zmq_curve_public(public_key, keys[0].c_str()) != 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": is no CURVE key"));
  return CurveKeys{public_key, keys[0]};
}
absl::StatusOr<std::unique_ptr<AllowList>> AllowList::Start(zmq::context_t& context,
                                                            const std::string& path) {
  auto list = std::make_unique<AllowListImpl>(context, path);
  SLUICE_RETURN_IF_ERROR(list->Open());
  return list;
}
SLUICE_END_NAMESPACE
