#include "sluice/runtime/service/http_keys.h"

#include <sodium.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kShortestKey = 16;

using Hash = std::array<unsigned char, crypto_generichash_BYTES>;
// Hashes have one length, so comparing them says nothing of the key's.
Hash HashOf(absl::string_view key) {
  Hash hash;
  crypto_generichash(hash.data(), hash.size(), reinterpret_cast<const unsigned char*>(key.data()),
                     key.size(), nullptr, 0);
  return hash;
}
struct Entry {
  std::string name;
  Hash hash;
};

absl::StatusOr<std::vector<Entry>> ReadEntries(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<Entry> entries;
  std::string line;
  for (int n = 1; std::getline(file, line); ++n) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty() || text[0] == '#') continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    const auto fail = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", n, ": ", why));
    };
    if (words.size() != 2) return fail(absl::StrCat(words.size(), " words; allowed: NAME KEY"));
    if (words[1].size() < kShortestKey)
      return fail(absl::StrCat("a key of ", words[1].size(), " characters; allowed: ", kShortestKey,
                               " or more"));
    for (char c : text) {
      if (!absl::ascii_isgraph(static_cast<unsigned char>(c)) && c != ' ' && c != '\t')
        return fail("a character that no header can carry; allowed: visible ASCII");
    }
    const Hash hash = HashOf(words[1]);
    for (const Entry& e : entries) {
      if (e.hash == hash) return fail(absl::StrCat("the same key as ", e.name, " has"));
    }
    entries.push_back({std::string(words[0]), hash});
  }
  return entries;
}

class BearerKeysImpl final : public BearerKeys {
 public:
  explicit BearerKeysImpl(std::string path) : path_(std::move(path)) {}
  absl::Status Load() {
    std::error_code error;
    stamp_ = std::filesystem::last_write_time(path_, error);
    SLUICE_ASSIGN_OR_RETURN(entries_, ReadEntries(path_));
    return absl::OkStatus();
  }
  std::optional<std::string> NameOf(absl::string_view key) override {
    const Hash hash = HashOf(key);
    std::lock_guard lock(mutex_);
    std::error_code error;
    if (std::filesystem::last_write_time(path_, error) != stamp_ && !error) (void)Load();
    const Entry* found = nullptr;
    for (const Entry& e : entries_) {
      if (sodium_memcmp(e.hash.data(), hash.data(), hash.size()) == 0) found = &e;
    }
    if (found == nullptr) return std::nullopt;
    return found->name;
  }

 private:
  const std::string path_;
  std::mutex mutex_;  // guards what was read of the file
  std::vector<Entry> entries_;
  std::filesystem::file_time_type stamp_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<BearerKeys>> BearerKeys::Open(const std::string& path) {
  if (sodium_init() < 0) return absl::InternalError("libsodium cannot start");
  auto keys = std::make_unique<BearerKeysImpl>(path);
  SLUICE_RETURN_IF_ERROR(keys->Load());
  return keys;
}
SLUICE_END_NAMESPACE
