#!/usr/bin/env bash
# Tries ./dev commands on a bare Debian 12: what they need beyond it they must install themselves.
set -euo pipefail
cd "$(dirname "$0")/../.."
source=$PWD

usage() {
  cat <<'EOF'
Usage: tests/tools/bare_debian.sh [OPTIONS] [--] [COMMAND]...

Makes a bare Debian 12 root by debootstrap, clones the last commit into it and runs `./dev COMMAND` there, one
after the other. Each COMMAND is one argument, e.g. "bench attention"; one that starts with "sh:" is a shell line
instead. Without any: every command of ./dev, which builds everything several times over (hours on 2 cores).
Prints one line a command: ok or FAILED, seconds, command. Exit status 1 when any failed. Needs root,
debootstrap, git and the Debian mirror that this machine's /etc/apt/sources.list* names.

  --dir FOLDER  where the roots and logs are kept (default /var/tmp/sluice-bare); its base root is made once
  --fresh       a new root for each command, so that none profits from what another installed
  --ccache DIR  share this compiler cache with the roots (default: none, as on a bare machine)
  --seconds N   time limit of each command (default 7200)
  --help        this text

Example: tests/tools/bare_debian.sh -- "--help" "build" "bench attention" "sh:cmake --preset debug"
Environment: JOBS (as for ./dev), http_proxy and https_proxy are passed on.
EOF
}

folder=/var/tmp/sluice-bare
fresh=
cache=
limit=7200
while [ $# -gt 0 ]; do
  case $1 in
    --dir) folder=${2:?--dir wants a folder}; shift 2 ;;
    --fresh) fresh=yes; shift ;;
    --ccache) cache=$(realpath "${2:?--ccache wants a folder}"); shift 2 ;;
    --seconds) limit=${2:?--seconds wants a number}; shift 2 ;;
    -h | --help)
      usage
      exit 0 ;;
    --) shift; break ;;
    -*) echo "error: unknown option '$1'; --help lists them" >&2; exit 2 ;;
    *) break ;;
  esac
done

commands=("$@")
if [ ${#commands[@]} -eq 0 ]; then
  commands=("--help" "new-router attention bare_check" "fmt --check" "build" "bench ^\$" "build" "test" "lint"
            "demo --length 2000 --routers dense mean_pool:k=16" "demo --sidecar" "evaluate flux_attention" "asan"
            "tsan" "fuzz 5")
fi
[ "$(id -u)" -eq 0 ] || { echo "error: run as root: debootstrap and chroot need it" >&2; exit 2; }
for tool in debootstrap git unshare; do
  command -v $tool >/dev/null || { echo "error: $tool is missing" >&2; exit 2; }
done

# The mirror of Debian 12 that this machine uses: "deb [options] URI bookworm main", or URIs: and Suites:.
mirror() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] && sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) +bookworm +.*/\2/p' "$file"
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] && awk 'BEGIN { RS = ""; FS = "\n" } {
      uri = ""
      suite = ""
      for (i = 1; i <= NF; ++i) {
        if ($i ~ /^URIs:/) { split($i, a, /[ \t]+/); uri = a[2] }
        if ($i ~ /^Suites:/ && ($i " ") ~ /[ \t]bookworm /) suite = "yes"
      }
      if (uri != "" && suite != "") print uri
    }' "$file"
  done
  true
}
uri=$(mirror | head -1)
[ -n "$uri" ] || { echo "error: no mirror of bookworm in /etc/apt/sources.list*" >&2; exit 2; }

mkdir -p "$folder"
base=$folder/base
if [ ! -e "$base/root/made" ]; then
  echo "debootstrap from $uri" >&2
  rm -rf "$base"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$base" "$uri" >"$folder/debootstrap.log" 2>&1 ||
    { tail -5 "$folder/debootstrap.log" >&2; exit 1; }
  touch "$base/root/made"
fi
[ -z "$(git status --porcelain)" ] || echo "note: what is not committed is not tried" >&2

root=$folder/root
new_root() {
  rm -rf "$root"
  cp -a "$base" "$root"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  find /etc/apt/apt.conf.d -iname '*proxy*' -exec cp -t "$root/etc/apt/apt.conf.d" {} +
  git clone -q "file://$source" "$root/root/sluice"
}
# inside LINE: runs a shell line in the root; its mounts and processes end with it.
inside() {
  timeout "$limit" unshare --mount --pid --fork --kill-child bash -c '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    cached=()
    if [ -n "$2" ]; then
      mkdir -p "$0/root/.cache/ccache"
      mount --bind "$2" "$0/root/.cache/ccache"
      cached=(CCACHE_BASEDIR=/root/sluice CCACHE_NOHASHDIR=1 CCACHE_DIR=/root/.cache/ccache)
    fi
    exec chroot "$0" env -i "${cached[@]}" HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      JOBS="${JOBS:-2}" http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
      sh -c "cd /root/sluice && $1"' "$root" "$1" "$cache" </dev/null
}

new_root
failed=0
number=0
for command in "${commands[@]}"; do
  number=$((number + 1))
  if [ -n "$fresh" ] && [ $number -gt 1 ]; then new_root; fi
  line="./dev $command"
  case $command in sh:*) line=${command#sh:} ;; esac
  log=$folder/$number.log
  begin=$SECONDS
  said=ok
  inside "$line" >"$log" 2>&1 || said=FAILED
  printf '%-6s %5d s  %s\n' "$said" $((SECONDS - begin)) "$line"
  if [ $said = FAILED ]; then
    failed=1
    tail -15 "$log" | sed 's/^/         /'
  fi
done
echo "logs: $folder/1.log to $folder/$number.log"
exit $failed
