DROP TABLE source_slots;
