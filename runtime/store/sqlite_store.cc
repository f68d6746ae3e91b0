#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "sluice/api/check.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kSchema = 1;
constexpr uint64_t kTrimAtOnce = 4096;  // outcomes a transaction: others wait no longer than that

constexpr const char* kLayout[] = {
    "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL",
    "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    // A trimmed outcome is an empty record: its id is still known.
    "CREATE TABLE IF NOT EXISTS outcome(sequence INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, "
    "record BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS snapshot(key TEXT PRIMARY KEY, through INTEGER NOT NULL, state "
    "BLOB NOT NULL) WITHOUT ROWID"};

// Keeps a second server out. SQLite's own exclusive mode would keep readers out as well.
class ServerLock {
 public:
  ~ServerLock() {
    if (fd_ >= 0) close(fd_);
  }
  // A server that is just going down may take a moment.
  absl::Status Take(const std::string& database) {
    std::error_code ignored;
    const std::string path =
        std::filesystem::weakly_canonical(database, ignored).string() + "-lock";
    fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) {
      return absl::UnavailableError(
          absl::StrCat(database, ": cannot make ", path, ": ", strerror(errno)));
    }
    for (int i = 0; i < 100; ++i) {
      if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
      usleep(20'000);
    }
    return absl::UnavailableError(
        absl::StrCat(database, ": another server writes to it (it holds ", path, ")"));
  }

 private:
  int fd_ = -1;
};

// Does no server have the file, and may we not make those that SQLite keeps beside it? A copy on a
// read-only disk is such.
bool Still(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  return access((path + "-wal").c_str(), F_OK) != 0 && access(folder.c_str(), W_OK) != 0;
}
std::string StillUri(const std::string& path) {
  const std::string plain = std::filesystem::absolute(path).string();
  return absl::StrCat(
      "file:", absl::StrReplaceAll(plain, {{"%", "%25"}, {"?", "%3f"}, {"#", "%23"}}),
      "?immutable=1");
}

class SqliteStore final : public Store {
 public:
  explicit SqliteStore(uint64_t ids_kept) : ids_kept_(std::max<uint64_t>(1, ids_kept)) {}
  ~SqliteStore() override {
    for (sqlite3_stmt* s :
         {append_, newest_, read_, save_, load_, get_, put_, set_, lease_, empty_, forget_})
      sqlite3_finalize(s);
    sqlite3_close(db_);
  }
  absl::Status OpenToServe(const std::string& path) {
    path_ = path;
    SLUICE_RETURN_IF_ERROR(lock_.Take(path));
    SLUICE_RETURN_IF_ERROR(OpenFile(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE));
    for (const char* sql : kLayout) {
      if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return Failed(sql);
    }
    SLUICE_RETURN_IF_ERROR(Prepare());
    SLUICE_ASSIGN_OR_RETURN(const std::string schema, GetOrPut("schema", absl::StrCat(kSchema)));
    return CheckSchema(schema);
  }
  absl::Status OpenToRead(const std::string& path) {
    path_ = path;
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored))
      return absl::NotFoundError(absl::StrCat(path, ": there is no such file"));
    readonly_ = true;
    SLUICE_RETURN_IF_ERROR(Still(path)
                               ? OpenFile(StillUri(path), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI)
                               : OpenFile(path, SQLITE_OPEN_READONLY));
    SLUICE_RETURN_IF_ERROR(Prepare());
    SLUICE_ASSIGN_OR_RETURN(const std::string schema, Get("schema"));
    return CheckSchema(schema);
  }
  absl::string_view name() const override { return "sqlite"; }
  bool shared() const override { return false; }
  bool durable() const override { return true; }
  std::string durability() const override { return "sqlite, synced at every commit"; }

  absl::StatusOr<uint64_t> LeaseIds(uint64_t count) override {
    std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(Writable());
    Use use(lease_);
    sqlite3_bind_int64(lease_, 1, static_cast<int64_t>(count));
    if (sqlite3_step(lease_) != SQLITE_ROW) return Failed("lease ids");
    const uint64_t end = static_cast<uint64_t>(sqlite3_column_int64(lease_, 0));
    if (sqlite3_step(lease_) != SQLITE_DONE) return Failed("lease ids");
    return end - count;
  }
  absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome> outcomes) override {
    std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(Writable());
    SLUICE_RETURN_IF_ERROR(Run("BEGIN IMMEDIATE"));
    std::vector<bool> fresh;
    for (const StoredOutcome& o : outcomes) {
      Use use(append_);
      sqlite3_bind_int64(append_, 1, static_cast<int64_t>(o.decision_id));
      sqlite3_bind_blob(append_, 2, o.bytes.data(), static_cast<int>(o.bytes.size()),
                        SQLITE_STATIC);
      if (sqlite3_step(append_) != SQLITE_DONE) return RolledBack(Failed("append"));
      fresh.push_back(sqlite3_changes(db_) > 0);
    }
    SLUICE_RETURN_IF_ERROR(Commit());
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    std::lock_guard lock(mutex_);
    return NewestHeld();
  }
  absl::StatusOr<uint64_t> Oldest() override {
    std::lock_guard lock(mutex_);
    return OldestHeld();
  }
  // One transaction: a reader's view does not change while a server trims.
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    // A page at a time: whoever visits may use the store.
    Page page;
    do {
      page.clear();
      SLUICE_RETURN_IF_ERROR(ReadPage(after, page));
      for (const auto& [sequence, record] : page) visit(sequence, record);
      if (!page.empty()) after = page.back().first;
    } while (page.size() == kPage);
    return absl::OkStatus();
  }
  absl::Status Trim(uint64_t before) override {
    for (;;) {
      std::lock_guard lock(mutex_);
      SLUICE_RETURN_IF_ERROR(Writable());
      SLUICE_ASSIGN_OR_RETURN(const uint64_t oldest, OldestHeld());
      SLUICE_ASSIGN_OR_RETURN(const uint64_t newest, NewestHeld());
      const uint64_t upto = std::min({before, newest + 1, oldest + kTrimAtOnce});
      if (upto <= oldest) return absl::OkStatus();
      SLUICE_RETURN_IF_ERROR(Run("BEGIN IMMEDIATE"));
      const absl::Status status = TrimHeld(oldest, upto, newest);
      if (!status.ok()) return RolledBack(status);
      SLUICE_RETURN_IF_ERROR(Commit());
    }
  }
  absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot& s) override {
    std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(Writable());
    Use use(save_);
    sqlite3_bind_text(save_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    sqlite3_bind_int64(save_, 2, static_cast<int64_t>(s.through));
    sqlite3_bind_blob(save_, 3, s.bytes.data(), static_cast<int>(s.bytes.size()), SQLITE_STATIC);
    return sqlite3_step(save_) == SQLITE_DONE ? absl::OkStatus() : Failed("save snapshot");
  }
  absl::StatusOr<StoredSnapshot> LoadSnapshot(const std::string& key) override {
    std::lock_guard lock(mutex_);
    Use use(load_);
    sqlite3_bind_text(load_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    const int rc = sqlite3_step(load_);
    if (rc == SQLITE_DONE) return absl::NotFoundError("no snapshot");
    if (rc != SQLITE_ROW) return Failed("load snapshot");
    return StoredSnapshot{static_cast<uint64_t>(sqlite3_column_int64(load_, 0)),
                          std::string(Blob(load_, 1))};
  }
  absl::StatusOr<std::string> GetOrPut(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(Writable());
    SLUICE_RETURN_IF_ERROR(Write(put_, key, value));
    return Get(key);
  }

 private:
  struct Use {  // a prepared statement, clean again afterwards
    explicit Use(sqlite3_stmt* s) : s(s) {}
    ~Use() {
      sqlite3_reset(s);
      sqlite3_clear_bindings(s);
    }
    sqlite3_stmt* s;
  };
  static absl::string_view Blob(sqlite3_stmt* s, int column) {
    const void* p = sqlite3_column_blob(s, column);
    return {static_cast<const char*>(p), static_cast<size_t>(sqlite3_column_bytes(s, column))};
  }
  absl::Status OpenFile(const std::string& name, int flags) {
    const int rc = sqlite3_open_v2(name.c_str(), &db_, flags | SQLITE_OPEN_NOMUTEX, nullptr);
    if (rc != SQLITE_OK) return Failed("open");
    sqlite3_busy_timeout(db_, 5000);
    return absl::OkStatus();
  }
  absl::Status Prepare() {
    const std::pair<sqlite3_stmt**, const char*> statements[] = {
        {&append_, "INSERT OR IGNORE INTO outcome(id, record) VALUES(?1, ?2)"},
        {&newest_, "SELECT max(sequence) FROM outcome"},
        {&read_,
         "SELECT sequence, record FROM outcome WHERE sequence > ?1 ORDER BY sequence "
         "LIMIT ?2"},
        {&empty_, "UPDATE outcome SET record = x'' WHERE sequence >= ?1 AND sequence < ?2"},
        {&forget_, "DELETE FROM outcome WHERE sequence < ?1"},
        {&save_, "INSERT OR REPLACE INTO snapshot(key, through, state) VALUES(?1, ?2, ?3)"},
        {&load_, "SELECT through, state FROM snapshot WHERE key = ?1"},
        {&get_, "SELECT value FROM meta WHERE key = ?1"},
        {&put_, "INSERT OR IGNORE INTO meta(key, value) VALUES(?1, ?2)"},
        {&set_, "INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)"},
        {&lease_,
         "INSERT INTO meta(key, value) VALUES('next_id', 1 + ?1) ON CONFLICT(key) DO UPDATE SET "
         "value = value + ?1 RETURNING value"}};
    for (const auto& [s, sql] : statements) {
      if (sqlite3_prepare_v2(db_, sql, -1, s, nullptr) != SQLITE_OK) return Failed(sql);
    }
    return absl::OkStatus();
  }
  absl::Status CheckSchema(const std::string& schema) const {
    if (schema == absl::StrCat(kSchema)) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " has schema ", schema, ", this version reads ", kSchema));
  }
  absl::Status Writable() const {
    if (!readonly_) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(path_, ": it was opened for reading"));
  }

  // With the mutex held.
  absl::StatusOr<uint64_t> NewestHeld() {
    Use use(newest_);
    if (sqlite3_step(newest_) != SQLITE_ROW) return Failed("newest");
    return static_cast<uint64_t>(sqlite3_column_int64(newest_, 0));
  }
  absl::StatusOr<uint64_t> OldestHeld() {
    SLUICE_ASSIGN_OR_RETURN(const std::string text, Get("oldest"));
    uint64_t oldest = 1;
    if (!text.empty() && !absl::SimpleAtoi(text, &oldest))
      return absl::DataLossError(absl::StrCat(path_, ": oldest is '", text, "', not a number"));
    return oldest;
  }
  static constexpr size_t kPage = 1024;
  using Page = std::vector<std::pair<uint64_t, std::string>>;
  absl::Status ReadPage(uint64_t after, Page& page) {
    std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(Run("BEGIN"));
    const absl::Status status = ReadHeld(after, page);
    if (!status.ok()) return RolledBack(status);
    return Commit();
  }
  absl::Status ReadHeld(uint64_t after, Page& page) {
    SLUICE_ASSIGN_OR_RETURN(const uint64_t oldest, OldestHeld());
    SLUICE_ASSIGN_OR_RETURN(const uint64_t newest, NewestHeld());
    SLUICE_RETURN_IF_ERROR(CheckCursor(path_, after, oldest, newest));
    Use use(read_);
    sqlite3_bind_int64(read_, 1, static_cast<int64_t>(after));
    sqlite3_bind_int64(read_, 2, kPage);
    int rc;
    while ((rc = sqlite3_step(read_)) == SQLITE_ROW)
      page.emplace_back(static_cast<uint64_t>(sqlite3_column_int64(read_, 0)), Blob(read_, 1));
    return rc == SQLITE_DONE ? absl::OkStatus() : Failed("read");
  }
  // The newest row stays whatever is trimmed: the next sequence number is counted from it.
  absl::Status TrimHeld(uint64_t oldest, uint64_t upto, uint64_t newest) {
    Use empty(empty_);
    sqlite3_bind_int64(empty_, 1, static_cast<int64_t>(oldest));
    sqlite3_bind_int64(empty_, 2, static_cast<int64_t>(upto));
    if (sqlite3_step(empty_) != SQLITE_DONE) return Failed("trim");
    if (newest >= ids_kept_) {
      Use forget(forget_);
      sqlite3_bind_int64(forget_, 1, static_cast<int64_t>(std::min(upto, newest - ids_kept_ + 1)));
      if (sqlite3_step(forget_) != SQLITE_DONE) return Failed("forget ids");
    }
    return Write(set_, "oldest", absl::StrCat(upto));
  }
  // "": no such value.
  absl::StatusOr<std::string> Get(absl::string_view key) {
    Use use(get_);
    sqlite3_bind_text(get_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    const int rc = sqlite3_step(get_);
    if (rc == SQLITE_DONE) return "";
    if (rc != SQLITE_ROW) return Failed("get");
    return std::string(Blob(get_, 0));
  }
  absl::Status Write(sqlite3_stmt* s, absl::string_view key, const std::string& value) {
    Use use(s);
    sqlite3_bind_text(s, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    sqlite3_bind_blob(s, 2, value.data(), static_cast<int>(value.size()), SQLITE_STATIC);
    return sqlite3_step(s) == SQLITE_DONE ? absl::OkStatus() : Failed("put");
  }
  absl::Status Run(const char* sql) {
    return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                          : Failed(sql);
  }
  absl::Status Commit() {
    const absl::Status status = Run("COMMIT");
    return status.ok() ? status : RolledBack(status);
  }
  absl::Status RolledBack(absl::Status status) {
    sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
    return status;
  }
  // The system's word says more than SQLite's "disk I/O error".
  absl::Status Failed(absl::string_view what) const {
    if (db_ == nullptr)
      return absl::UnavailableError(absl::StrCat(path_, ": ", what, ": no memory"));
    const int rc = sqlite3_errcode(db_) & 0xff;
    const bool system = rc == SQLITE_IOERR || rc == SQLITE_CANTOPEN;
    const int error = sqlite3_system_errno(db_) != 0 ? sqlite3_system_errno(db_) : errno;
    return absl::UnavailableError(
        absl::StrCat(path_, ": ", what, ": ", sqlite3_errmsg(db_),
                     system && error != 0 ? absl::StrCat(" (", strerror(error), ")") : ""));
  }
  const uint64_t ids_kept_;
  bool readonly_ = false;
  std::mutex mutex_;  // the serving thread leases ids, the learner does the rest
  std::string path_;
  ServerLock lock_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt *append_ = nullptr, *newest_ = nullptr, *read_ = nullptr, *save_ = nullptr,
               *load_ = nullptr, *get_ = nullptr, *put_ = nullptr, *set_ = nullptr,
               *lease_ = nullptr, *empty_ = nullptr, *forget_ = nullptr;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path, StoreAccess access,
                                                       uint64_t ids_kept) {
  auto store = std::make_unique<SqliteStore>(ids_kept);
  if (access == StoreAccess::kRead) {
    SLUICE_RETURN_IF_ERROR(store->OpenToRead(path));
  } else {
    SLUICE_RETURN_IF_ERROR(store->OpenToServe(path));
  }
  return store;
}
SLUICE_END_NAMESPACE
