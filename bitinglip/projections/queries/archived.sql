-- Up to where the events of each stream are read from the archive.

select stream, up_to from archived;
