#!/bin/sh
# usage: check_objects.sh NM OBJDUMP OBJECT...
#
# Nothing compiled for a newer processor may reach an older one.  A file named x86_<isa>.cc defines functions that carry
# <isa> in their names and nothing else that a linker could take for another file's (a weak symbol, say: an inline
# function or a template is merged with the copies of other files).  All other files stay on the baseline.  And no file
# fuses a product and a sum: every float step rounds once.
set -u
nm=$1 objdump=$2
shift 2
[ $# -gt 0 ] || { echo "no object files"; exit 1; }
failed=0

wrong() { # OBJECT WHAT LINES
  [ -z "$3" ] && return
  printf '%s: %s\n%s\n' "$1" "$2" "$3" | head -n 8
  failed=1
}

bmi='andn|bextr|bls(i|msk|r)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|tzcnt'
for object in "$@"; do
  symbols=$("$nm" -C --defined-only --extern-only "$object") && code=$("$objdump" -d --no-show-raw-insn "$object") ||
    exit 1
  # "  1f: mnemonic operands", with the blanks of GNU's objdump or LLVM's
  code=$(printf '%s\n' "$code" | sed -n 's/^ *[0-9a-f]*:[[:blank:]]*//p' | tr '\t' ' ')
  [ -n "$code" ] || wrong "$object" "no code is found in it" "$object"
  refuse() { wrong "$object" "$1" "$(printf '%s\n' "$code" | grep -E "$2")"; }

  refuse "fuses a product and a sum" '^vfn?m(add|sub)'
  name=$(basename "$object" .cc.o)
  case $name in
    x86_*)
      isa=${name#x86_}
      wrong "$object" "defines more than functions of its own" \
        "$(printf '%s\n' "$symbols" | grep -vE "^[0-9a-f]+ T binarize::[a-z0-9_]+_$isa\(")"
      refuse "uses BMI or LZCNT, for which nobody probes" "^($bmi)( |$)"
      ;;
    *) refuse "leaves the baseline" "^v[a-z]|^($bmi|popcnt)[lqw]?( |$)" ;;
  esac
  case $name in
    x86_avx2) refuse "uses AVX-512" '%zmm|%[xy]mm(1[6-9]|[23][0-9])|%k[0-7]' ;;
    x86_avx512) refuse "uses VPOPCNT" '^vpopcnt' ;;
  esac
done
[ $failed = 0 ] && echo "$# object files keep to their instruction sets"
exit $failed
