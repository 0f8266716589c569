# A job of the soak: `soak_job.sh FOLDER BEATS HOW`, run by `exec sh` so that its parent is Ray's supervisor of the job.
# Its own file says `start|beat|end ATTEMPT TIME PARENT`, two beats a second. HOW is an exit code, or `poison`: it then
# kills its own supervisor.
out="$1/$MOORAGE_JOB_ID"
say() { echo "$1 $MOORAGE_ATTEMPT $(date +%s.%N) $PPID" >> "$out"; }
say start
i=0
while [ "$i" -lt "$2" ]; do sleep 0.5; say beat; i=$((i + 1)); done
if [ "$3" = poison ]; then kill -9 "$PPID"; sleep 30; fi
say end
exit "$3"
