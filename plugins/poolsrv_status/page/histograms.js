// Histograms: all of them have the same buckets, 1-2-5 for each power of ten, so they can be added and subtracted.

const BOUNDS = [];
for (let power = -6; power < 9; power++) for (const digit of [1, 2, 5]) BOUNDS.push(Number(digit + "e" + power));
BOUNDS.push(1e9);
const BUCKET = new Map(BOUNDS.map((bound, index) => [bound, index]));

// Add the buckets of the document to a list of counts.
function addBuckets(counts, buckets) {
  for (const [bound, times] of buckets) counts[bound === null ? BOUNDS.length : BUCKET.get(bound) ?? BOUNDS.length] += times;
  return counts;
}

function emptyCounts() {
  return new Float64Array(BOUNDS.length + 1);
}

// A counter that is smaller than it was has begun again at 0: then all of it is growth.
function grown(now, before) {
  return now < before ? now : now - before;
}

function grownCounts(now, before) {
  return before === undefined ? now : now.map((times, index) => grown(times, before[index]));
}

function sum(counts) {
  return counts.reduce((total, times) => total + times, 0);
}

// The value below which this share of all values is, with the values of a bucket spread evenly; null without values.
function quantile(counts, share) {
  const total = sum(counts);
  if (!total) return null;
  const rank = share * total;
  let below = 0;
  for (let bucket = 0; bucket < BOUNDS.length; bucket++) {
    const times = counts[bucket];
    if (times && below + times >= rank) {
      const low = bucket ? BOUNDS[bucket - 1] : 0;
      return low + ((BOUNDS[bucket] - low) * (rank - below)) / times;
    }
    below += times;
  }
  return BOUNDS[BOUNDS.length - 1];
}
